"""Teachers and drafters: what is loaded, and what is refused by name."""

import functools
from pathlib import Path

import pytest
import tiny
import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks.translation import TranslationTask
from omegaconf import OmegaConf

from nar_plugins.checkpoint_io.teachers import check_drafter, check_teacher, load_drafter, load_teacher
from nar_plugins.tasks.translation import NarTranslationTask


def arguments(task: str):
    flags = ("--encoder-layers", "1", "--decoder-layers", "1", "--task", task)
    return tiny.arguments(*flags, arch="transformer_tiny", criterion="cross_entropy")


@functools.lru_cache(maxsize=None)
def configuration(task: str):
    """What fairseq makes of a teacher's training flags."""
    return convert_namespace_to_omegaconf(arguments(task))


def save(path: Path, words=20, name="w", task="nar_translation", **task_cfg):
    """A checkpoint as fairseq writes it, and its model.

    Args:
        words, name: size of the dictionary and name of its words.
        task: under which it was trained; under "translation" there is no ``<mask>``.
        task_cfg: fields of the task's configuration as stored.
    """
    cfg = configuration(task)
    made = {"nar_translation": NarTranslationTask, "translation": TranslationTask}[task](
        cfg.task, tiny.dictionary(words, name), tiny.dictionary(words, name)
    )
    torch.manual_seed(1)
    model = made.build_model(cfg.model)
    stored = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    stored["task"].update(task_cfg)
    history = {"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
    torch.save(
        {
            "args": None,
            "cfg": stored,
            "model": model.state_dict(),
            "task_state": made.state_dict(),
            "optimizer_history": [history],
            "extra_state": {"train_iterator": {"epoch": 1}},
        },
        path,
    )
    return model.eval()


def edited(path: Path, change) -> Path:
    """The checkpoint with ``change`` applied to its state."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def task() -> NarTranslationTask:
    """20 words and ``<mask>``."""
    return tiny.task()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "teacher.pt"


def refusal(path, task) -> str:
    with pytest.raises(ValueError) as error:
        load_teacher(str(path), task)
    assert "\n" not in str(error.value)
    return str(error.value)


def batch(words: int = 20):
    source = torch.randint(4, 4 + words, (2, 5), generator=torch.Generator().manual_seed(1))
    return {"src_tokens": source, "src_lengths": torch.tensor([5, 5]), "prev_output_tokens": source}


def test_a_teacher_is_in_evaluation_mode_without_gradients_and_says_what_the_model_said(path, task):
    model = save(path)
    teacher = load_teacher(str(path), task)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    torch.testing.assert_close(teacher(**batch())[0], model(**batch())[0])


def test_a_teacher_with_arguments_in_the_form_of_old_checkpoints_is_loaded(path, task):
    save(path, task="translation")
    load_teacher(str(edited(path, lambda s: s.update(args=arguments("translation"), cfg=None))), task)


def test_loading_a_teacher_does_not_change_the_task(path):
    save(path)
    task = tiny.task()
    task.build_model(convert_namespace_to_omegaconf(tiny.arguments()).model)
    noise, before = task.noise, set(vars(task))
    load_teacher(str(path), task)
    assert noise is not None and task.noise == noise and set(vars(task)) == before


def test_a_teacher_of_fairseqs_translation_gets_a_row_for_mask(path, task):
    model = save(path, task="translation")
    teacher = load_teacher(str(path), task)
    logits = teacher(**batch())[0]
    assert logits.size(-1) == len(task.target_dictionary) == 25
    torch.testing.assert_close(logits[..., :24], model(**batch())[0])


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda s: setattr(s["cfg"]["model"], "_name", "cmlm_tiny"),
            "holds a CmlmModel: a teacher is an autoregressive",
        ),
        (lambda s: setattr(s["cfg"]["model"], "_name", "cmlm_transformer"), "holds a CMLMNATransformerModel"),
        (lambda s: setattr(s["cfg"]["model"], "_name", "transformer_lm"), "holds a TransformerLanguageModel"),
        (
            lambda s: setattr(s["cfg"]["model"], "_name", "their_model"),
            "holds a model 'their_model', which is not registered",
        ),
        (lambda s: s["cfg"]["task"].update(_name="translation_lev"), "was trained under --task translation_lev"),
        (lambda s: s["cfg"]["task"].update(_name="language_modeling"), "was trained under --task language_modeling"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(path, change, said, task):
    save(path)
    message = refusal(edited(path, change), task)
    assert message.startswith(str(path)) and said in message


def test_a_built_model_and_its_class_are_checked_alike(path):
    check_teacher(save(path), "it")
    check_teacher(ARCH_MODEL_REGISTRY["transformer"], "it")
    for kind in (tiny.model()[0], ARCH_MODEL_REGISTRY["cmlm"]):
        with pytest.raises(ValueError, match="it holds a CmlmModel"):
            check_teacher(kind, "it")


def test_a_drafter_is_a_parallel_model(path, task):
    save(path)
    with pytest.raises(
        ValueError, match=f"^{path} holds a TransformerModel: a drafter is a non-autoregressive model, .* or a dag"
    ):
        load_drafter(str(path), task)
    for arch in ("cmlm", "nat", "dag"):
        check_drafter(ARCH_MODEL_REGISTRY[arch], "it")
        check_drafter(tiny.model(arch=f"{arch}_tiny")[0], "it")
    for arch in ("blockwise", "transformer", "cmlm_transformer"):
        with pytest.raises(ValueError, match="it holds a"):
            check_drafter(ARCH_MODEL_REGISTRY[arch], "it")


def test_a_checkpoint_that_is_missing_or_truncated_is_named(path, task):
    assert str(path) in refusal(path, task)
    save(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path} is truncated" in refusal(path, task)


# -- dictionaries ------------------------------------------------------------------------------------------------------


def test_a_teacher_of_this_task_with_other_symbols_is_refused_with_the_first(path, task):
    save(path, name="v")
    said = refusal(path, task)
    assert said.startswith(
        "the source dictionary of data is not the checkpoint's: symbol 4 is 'w0', the checkpoint has 'v0'"
    )


@pytest.fixture
def data(tmp_path) -> Path:
    """The folder of a teacher's data: dict.xx.txt and dict.yy.txt with 20 words."""
    (tmp_path / "bin").mkdir()
    for language in ("xx", "yy"):
        tiny.dictionary(20).save(str(tmp_path / "bin" / f"dict.{language}.txt"))
    return tmp_path / "bin"


def stock(path: Path, data: Path, **names) -> Path:
    """A checkpoint of fairseq's translation that was trained on ``data``."""
    save(path, task="translation", data=str(data), source_lang="xx", target_lang="yy", **names)
    return path


def test_a_stock_teacher_is_compared_with_the_dictionaries_of_its_data(path, data, task):
    load_teacher(str(stock(path, data)), task)
    tiny.dictionary(20, "v").save(str(data / "dict.yy.txt"))
    said = refusal(path, task)
    assert said.startswith(
        "the target dictionary of data is not the checkpoint's: symbol 4 is 'w0', the checkpoint has 'v0'"
    )


def test_a_stock_teachers_folder_that_holds_other_data_by_now_says_nothing(path, data, task):
    stock(path, data)
    tiny.dictionary(21, "v").save(str(data / "dict.yy.txt"))
    load_teacher(str(path), task)


def test_a_stock_teacher_without_its_data_is_compared_by_size(path, tmp_path, task):
    load_teacher(str(stock(path, tmp_path / "gone")), task)
    said = refusal(stock(path, tmp_path / "gone", words=17), task)
    assert "embed_tokens.weight has 21 rows in the checkpoint and 25 here" in said and "dictionary" in said


def test_a_teacher_of_the_other_direction_is_refused(path, data):
    stock(path, data)
    task = tiny.task("-s", "xx", "-t", "yy")
    load_teacher(str(path), task)
    said = refusal(path, tiny.task("-s", "yy", "-t", "xx"))
    assert said == f"{path} translates xx-yy, the data are yy-xx: give a teacher of that direction"
