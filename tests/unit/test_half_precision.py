"""fairseq's ways to half precision that cannot train here name --train-dtype; missing tasks and foreign models are named."""
import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY

from nar_plugins import compat
from tiny import arguments, dictionary, task


def build(*flags: str, arch: str = "cmlm_tiny", from_checkpoint: bool = False):
    config = convert_namespace_to_omegaconf(arguments(*flags, arch=arch))
    made = TASK_REGISTRY["nar_translation"](config.task, dictionary(), dictionary())
    return made.build_model(config.model, from_checkpoint)


@pytest.mark.parametrize("arch", ["cmlm_tiny", "transformer_tiny"])
@pytest.mark.parametrize("flag", ["--fp16", "--memory-efficient-fp16", "--bf16", "--memory-efficient-bf16"])
def test_half_precision_that_cannot_train_on_a_cpu_names_train_dtype(flag, arch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"{flag} .*only.*give --train-dtype bfloat16") as error:
        build(flag, arch=arch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags, gpu, from_checkpoint", [
    (("--fp16",), True, False),  # trains on a GPU
    (("--fp16",), False, True),  # decoding casts the weights, on CPUs too
    (("--amp",), False, False),  # PyTorch switches it off there, with a warning
])  # fmt: skip
def test_half_precision_that_works_goes_on_working(flags, gpu, from_checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    build(*flags, from_checkpoint=from_checkpoint)


def test_fp16_with_cpu_is_refused_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--fp16"):
        build("--fp16", "--cpu")


# -- tasks and models that do not belong together, and that nothing else names -------------------------------------------

def test_fairseqs_own_nar_models_are_sent_to_their_task():
    with pytest.raises(ValueError, match="nonautoregressive_transformer is fairseq's own and needs --task translation_lev"):
        build(arch="nonautoregressive_transformer")


def test_pre_training_is_not_for_a_stock_transformer():
    config = convert_namespace_to_omegaconf(arguments(arch="transformer_tiny", criterion="cross_entropy"))
    pretraining = convert_namespace_to_omegaconf(options.parse_args_and_arch(
        options.get_training_parser(), ["data", "--task", "bang_pretraining", "--arch", "bang_tiny"]))  # fmt: skip
    made = TASK_REGISTRY["bang_pretraining"](pretraining.task, dictionary())
    with pytest.raises(ValueError, match="--task bang_pretraining trains --arch bang, not transformer_tiny"):
        made.build_model(config.model)


@pytest.mark.parametrize("words, message", [
    (["--iterations", "4"], "--iterations is a flag of --task nar_translation, and this is translation"),
    (["--beam", "1", "--length-beam=3"], "--length-beam is a flag of --task nar_translation"),
    (["--task", "translation_lev", "--bang-policy", "nar"], "--bang-policy is a flag .* this is translation_lev"),
    (["--task"], "--task has no name"),
])  # fmt: skip
def test_our_flags_without_our_task_name_it(words, message):
    with pytest.raises(ValueError, match=message):
        options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path", "x.pt", *words])


def test_a_validation_without_a_task_names_it():
    with pytest.raises(ValueError, match="--task is missing"):
        options.parse_args_and_arch(options.get_validation_parser(), ["data", "--path", "x.pt"])


def test_stock_commands_are_left_alone():
    for words in (["--beam", "4", "--left-pad-source"], ["--task", "nar_translation", "--iterations", "3"], ["--seed", "3"]):
        compat.check_task_of_flags(options.get_generation_parser(), words)
