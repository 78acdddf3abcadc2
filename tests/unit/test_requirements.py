"""Model, task, criterion and command ask whether they belong together: every combination works or says in one line what it needs."""
import copy
from functools import lru_cache

import pytest
import torch
from fairseq import options
from fairseq.criterions import register_criterion
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf

from nar_plugins.criterions.nar_loss import NarLoss, NarLossConfig
from nar_plugins.models import requirements
from tiny import arguments, dictionary, task

MODELS = {
    "cmlm": ("cmlm_tiny",),
    "nat": ("nat_tiny",),
    "uniform": ("nat_tiny", "--source-copy", "uniform", "--length-head", "pooled"),
    "ctc": ("nat_tiny", "--ctc", "--source-copy", "uniform", "--upsample", "2"),
    "blockwise": ("blockwise_tiny",),
    "bang": ("bang_tiny",),
    "transformer": ("transformer_tiny",),
}
CRITERIONS = (None, "cross_entropy", "label_smoothed_cross_entropy", "nat_loss", "nar_loss", "blockwise_loss", "bang_loss")
TASKS = (None, "translation", "translation_lev", "nar_translation", "bang_pretraining")
OURS = {"cmlm": "nar_loss", "nat": "nar_loss", "uniform": "nar_loss", "ctc": "nar_loss", "blockwise": "blockwise_loss",
        "bang": "bang_loss"}  # fmt: skip


def given(flag: str, value) -> list:
    return [] if value is None else [flag, value]


@lru_cache(maxsize=None)
def parsed(*flags: str):
    """What fairseq-train makes of its flags."""
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), ["data", *flags]))


def build(model: str, task_name, criterion) -> None:
    """What fairseq-train builds before its first update, in its order."""
    cfg = parsed("--arch", "cmlm_tiny", *given("--task", task_name))
    its_task = TASK_REGISTRY[cfg.task._name](cfg.task, *(dictionary() for _ in range(1 if task_name == "bang_pretraining" else 2)))
    its_task.build_model(copy.deepcopy(parsed("--arch", *MODELS[model]).model))
    its_task.build_criterion(cfg.criterion if criterion is None else criterion_config(criterion))


def criterion_config(name: str):
    """As with ``--criterion name``, without the seconds of fairseq's parser."""
    return OmegaConf.create({"criterion": {"_name": name}, "optimization": {"sentence_avg": False}}).criterion


def expected(model: str, task_name, criterion):
    """None where it works, else what the line names."""
    ours = {"nar_loss", "blockwise_loss", "bang_loss"}
    task_name, criterion = task_name or "translation", criterion or "cross_entropy"
    if model == "transformer":
        if task_name == "bang_pretraining":
            return "--task bang_pretraining trains --arch bang: for --arch transformer_tiny give --task nar_translation"
        if criterion in ours:
            foreign = f"--criterion {criterion} needs --task nar_translation"
            return f"--criterion {criterion} trains this package's models" if task_name == "nar_translation" else foreign
        stock_nat = criterion == "nat_loss" and task_name == "nar_translation"
        return "--criterion nat_loss trains fairseq's own non-autoregressive models" if stock_nat else None
    arch = MODELS[model][0]
    if task_name != "nar_translation" and (model, task_name) != ("bang", "bang_pretraining"):
        return f"--arch {arch} needs --task nar_translation"
    return None if criterion == OURS[model] else f"--arch {arch} needs --criterion {OURS[model]}: the criterion here is {criterion}"


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_every_combination_works_or_says_what_it_needs(model, task_name):
    for criterion in CRITERIONS:
        wanted = expected(model, task_name, criterion)
        if wanted is None:
            build(model, task_name, criterion)
            continue
        with pytest.raises(ValueError) as error:
            build(model, task_name, criterion)
        said = str(error.value)
        assert said.startswith(wanted) and "\n" not in said, (criterion, said)


def test_what_was_left_out_is_named_with_fairseqs_default():
    with pytest.raises(ValueError, match=r"the task here is translation \(fairseq's when none is given\)$"):
        build("cmlm", None, "nar_loss")
    with pytest.raises(ValueError, match=r"the criterion here is cross_entropy \(fairseq's when none is given\)$"):
        build("cmlm", "nar_translation", None)


def test_a_bang_of_one_token_is_told_its_flags():
    with pytest.raises(ValueError, match="--criterion bang_loss --ngram 1"):
        build("bang", "nar_translation", "cross_entropy")


@pytest.mark.parametrize("arch, name", [("blockwise_tiny", "blockwise_loss"), ("bang_tiny", "bang_loss")])
def test_nar_loss_on_a_model_with_its_own_loss_names_that(arch, name):
    its_task = task()
    model = its_task.build_model(parsed("--arch", arch).model)
    with pytest.raises(ValueError, match=f"--criterion nar_loss trains .* give --criterion {name}$"):
        NarLoss(its_task, 0.0, 1.0)(model, None)


def test_fairseqs_own_nar_models_are_sent_to_their_task():
    cfg = convert_namespace_to_omegaconf(arguments(arch="nonautoregressive_transformer", criterion="nat_loss"))
    with pytest.raises(ValueError, match="nonautoregressive_transformer is fairseq's own, and needs --task translation_lev"):
        task().build_model(cfg.model)


def test_a_users_own_criterion_may_inherit_from_ours():
    @register_criterion("my_nar_loss", dataclass=NarLossConfig)
    class MyNarLoss(NarLoss):
        pass

    cfg = parsed("--arch", "cmlm_tiny")
    requirements.check_criterion(requirements.model_class(cfg.model), cfg.model, "my_nar_loss")
    with pytest.raises(ValueError, match="--criterion nar_loss trains this package's models"):
        stock = parsed("--arch", "transformer_tiny").model
        requirements.check_criterion(requirements.model_class(stock), stock, "my_nar_loss")


# -- options of a yaml file ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", ["cmlm", "ctc", "blockwise", "bang"])
def test_options_of_a_yaml_file_build_the_model_of_the_same_flags(model):
    arch, *flags = MODELS[model]
    yaml = {"_name": arch, "encoder_layers": 1, "decoder_ffn_embed_dim": "96", "dropout": 0}
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].replace("-", "_")
            yaml[name] = True
        else:
            yaml[name] = int(flag) if flag.isdigit() else flag
    cfg = convert_namespace_to_omegaconf(
        arguments(*flags, "--encoder-layers", "1", "--decoder-ffn-embed-dim", "96", "--no-layerwise-attention", arch=arch)
        if arch == "nat_tiny" else arguments(*flags, "--encoder-layers", "1", "--decoder-ffn-embed-dim", "96", arch=arch)
    )  # fmt: skip
    if arch == "nat_tiny":
        yaml["layerwise_attention"] = False
    by_flags, by_yaml = task().build_model(cfg.model), task().build_model(OmegaConf.create(yaml))
    shapes = [{name: tuple(weight.shape) for name, weight in one.state_dict().items()} for one in (by_flags, by_yaml)]
    assert shapes[0] == shapes[1] and by_yaml.decoder.layers[0].fc1.out_features == 96
    kept = {key: value for key, value in vars(by_flags.args).items() if key in vars(by_yaml.args) and key != "max_source_positions"}
    assert {key: getattr(by_yaml.args, key) for key in kept} == kept


@pytest.mark.parametrize("wrong, message", [
    ({"lenght_head": "token"}, "model.lenght_head: --arch cmlm_tiny has no such option"),
    ({"length_head": "tokne"}, "model.length_head: tokne: choose token"),
    ({"encoder_layers": "two"}, "model.encoder_layers: two is no int"),
    ({"stop_length_gradient": "yes"}, "model.stop_length_gradient: yes: choose true or false"),
])  # fmt: skip
def test_wrong_options_of_a_yaml_file_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        task().build_model(OmegaConf.create({"_name": "cmlm_tiny", **wrong}))


# -- half precision on a CPU ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model", ["cmlm", "transformer"])
@pytest.mark.parametrize("flag", ["--fp16", "--memory-efficient-fp16", "--bf16", "--memory-efficient-bf16"])
def test_half_precision_that_a_cpu_cannot_train_names_train_dtype(flag, model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = convert_namespace_to_omegaconf(arguments(flag, arch=MODELS[model][0]))
    with pytest.raises(ValueError, match=f"{flag} .*only.*give --train-dtype bfloat16") as error:
        TASK_REGISTRY["nar_translation"](cfg.task, dictionary(), dictionary()).build_model(cfg.model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags, gpu, from_checkpoint", [
    (("--fp16",), True, False),  # trains on a GPU
    (("--fp16",), False, True),  # decoding casts the weights, on CPUs too
    (("--amp",), False, False),  # PyTorch switches it off there, with a warning
])  # fmt: skip
def test_half_precision_that_works_goes_on_working(flags, gpu, from_checkpoint, monkeypatch):
    cfg = convert_namespace_to_omegaconf(arguments(*flags))
    its_task = TASK_REGISTRY["nar_translation"](cfg.task, dictionary(), dictionary())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    its_task.build_model(cfg.model, from_checkpoint)


def test_fp16_with_cpu_is_refused_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--fp16"):
        task("--fp16", "--cpu").build_model(convert_namespace_to_omegaconf(arguments("--fp16", "--cpu")).model)
