"""Options whose names have changed: the old name means the same at every door, and both at once are refused."""

import shutil
from argparse import Namespace

import pytest
from conftest import FIXTURES, preprocess
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from tiny import model

from nar_plugins.generators import registry

OPTIONS = [("bang_theta", "bang_min_score", -2.0), ("draft_words", "draft_vocab_size", 7)]
RENAMED = pytest.mark.parametrize("old, new, value", OPTIONS)


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def test_these_are_all_old_names():
    found = {
        (name, f.metadata["new_name"])
        for config in registry.CONFIGS.values()
        for name, f in config.__dataclass_fields__.items()
        if "new_name" in f.metadata
    }
    assert found == {(old, new) for old, new, _ in OPTIONS}
    for old, new in found:
        assert registry.default_of(old) == registry.default_of(new)


@RENAMED
def test_the_flags_mean_the_same(old, new, value):
    configs = [model(flag(name), str(value))[1].generator_config(Namespace()) for name in (old, new)]
    assert configs[0] == configs[1] and getattr(configs[0], new) == value
    with pytest.raises(ValueError, match=f"^{flag(old)} is the old name of {flag(new)}: give one of them$"):
        model(flag(old), str(value), flag(new), str(value))[1].generator_config(Namespace())


@RENAMED
def test_the_keys_of_eval_bleu_args_mean_the_same_and_override_the_flags(old, new, value):
    _, task = model(flag(old), str(value))
    for name in (old, new):
        for given in (value * 2, registry.default_of(new)):
            config = task.generator_config(Namespace(**{name: given}))
            assert getattr(config, new) == given and getattr(config, old) == registry.default_of(old)
    with pytest.raises(ValueError, match=f"^--eval-bleu-args: {flag(old)} is the old name of {flag(new)}: give"):
        task.generator_config(Namespace(**{old: value, new: value}))
    with pytest.raises(ValueError, match=f'^--eval-bleu-args: {new} is "x": give a'):
        task.generator_config(Namespace(**{old: "x"}))


@RENAMED
def test_the_keywords_of_the_hub_mean_the_same(old, new, value):
    _, task = model()
    configs = [task.generator_config(OmegaConf.create({"beam": 1, name: value})) for name in (old, new)]
    assert configs[0] == configs[1] and getattr(configs[0], new) == value
    with pytest.raises(ValueError, match=f"^{flag(old)} is the old name of {flag(new)}: give one of them$"):
        task.generator_config(OmegaConf.create({"beam": 1, old: value, new: value}))


@RENAMED
@pytest.mark.parametrize("name", ["cmlm", "bang"])
def test_a_checkpoint_of_before_has_the_old_key(tmp_path, name, old, new, value):
    folder = FIXTURES / "trained_before"
    for side in ("src", "tgt"):
        shutil.copy(folder / f"test.{side}", tmp_path)
    data = preprocess(tmp_path, tmp_path / "bin", srcdict=folder / "dict.txt")
    path = folder / f"{name}.pt"
    saved = checkpoint_utils.load_checkpoint_to_cpu(str(path))["cfg"]["task"]
    assert old in saved and new not in saved
    for overrides, wanted in (({}, registry.default_of(new)), ({old: value}, value)):
        _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data), **overrides})
        assert getattr(task.generator_config(Namespace()), new) == wanted


@RENAMED
def test_messages_name_the_new_flag(old, new, value):
    decoded, task = model(flag(old), str(value))
    with pytest.raises(ValueError, match=f"^{flag(new)} is no option of --generator mask_predict: leave it out$"):
        task.build_generator([decoded], Namespace())
