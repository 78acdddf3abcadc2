"""Model, task and criterion check one another before the first update, in every direction and command."""

import itertools
import shutil

import pytest
from conftest import ROOT
from fairseq import tasks
from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion, register_criterion
from in_process import here, refusal
from omegaconf import OmegaConf
from test_bad_input import TRAIN as COMMON
from test_bad_input import binarise, pairs

SIZES = (
    "--encoder-layers",
    "1",
    "--decoder-layers",
    "1",
    "--encoder-embed-dim",
    "16",
    "--decoder-embed-dim",
    "16",
    "--encoder-ffn-embed-dim",
    "16",
    "--decoder-ffn-embed-dim",
    "16",
    "--encoder-attention-heads",
    "2",
    "--decoder-attention-heads",
    "2",
)
MODELS = {
    "transformer": ("transformer_tiny", "cross_entropy"),
    "cmlm": ("cmlm_tiny", "nar_loss"),
    "nat": ("nat_tiny --source-copy uniform", "nar_loss"),
    "ctc": ("nat_tiny --ctc", "nar_loss"),
    "dag": ("dag_tiny --upsample 2 --max-target-positions 40", "nar_loss"),
    "fertility": ("nat_tiny", "nar_loss"),
    "blockwise": ("blockwise_tiny", "blockwise_loss"),
    "bang": ("bang_tiny", "bang_loss"),
}
CRITERIONS = (
    None,
    "cross_entropy",
    "label_smoothed_cross_entropy",
    "nat_loss",
    "nar_loss",
    "blockwise_loss",
    "bang_loss",
)
AR_CRITERIONS = (None, "cross_entropy", "label_smoothed_cross_entropy")
TRAIN = COMMON[COMMON.index("--optimizer") :]  # without a task


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairing")
    return binarise(folder, {"train": pairs(20, 1), "valid": pairs(5, 2)})


def flags(name: str, criterion, task) -> list:
    arch, own = MODELS[name]
    given = ["--cpu", "--user-dir", ROOT / "nar_plugins", *TRAIN, *SIZES, "--arch", *arch.split(), "--max-update", "1"]
    if criterion is not None:
        given += ["--criterion", criterion]
    return given if task is None else [*given, "--task", task]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "transformer"])
def test_only_its_own_criterion_trains_a_model(data, tmp_path, name):
    """(fertility has no data here: its own criterion is asked for them.)"""
    own = MODELS[name][1]
    for criterion in CRITERIONS:
        command = ("fairseq-train", data, *flags(name, criterion, "nar_translation"), "--save-dir", tmp_path)
        if criterion == own and name != "fertility":
            here(*command)
        else:
            said = refusal(*command)
            assert "run nar-align" in said if criterion == own else f"give --criterion {own}" in said
            assert criterion != own and f"--criterion {criterion or 'cross_entropy'}" in said or criterion == own
    assert not list(tmp_path.glob("crash*"))


def test_a_stock_model_is_trained_by_stock_criterions_only(data, tmp_path):
    for criterion in CRITERIONS:
        folder = tmp_path / str(criterion)
        command = ("fairseq-train", data, *flags("transformer", criterion, "nar_translation"), "--save-dir", folder)
        if criterion in AR_CRITERIONS:
            here(*command)
        elif criterion != "nat_loss":  # which is not ours to refuse
            assert f"--criterion {criterion} trains --arch" in refusal(*command)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "transformer"])
def test_another_task_is_named_whatever_the_criterion(data, tmp_path, name):
    for task, criterion in itertools.product((None, "translation", "translation_lev"), (None, MODELS[name][1])):
        said = refusal("fairseq-train", data, *flags(name, criterion, task), "--save-dir", tmp_path)
        assert "needs --task nar_translation" in said and f"this is {task or 'translation'}" in said


@pytest.mark.parametrize("name", ["cmlm", "ctc", "blockwise"])
def test_pre_training_is_for_bang(data, tmp_path, name):
    shutil.copy(data / "dict.src.txt", tmp_path / "dict.txt")
    for criterion in (None, MODELS[name][1], "bang_loss"):
        said = refusal("fairseq-train", tmp_path, *flags(name, criterion, "bang_pretraining"), "--save-dir", tmp_path)
        assert (
            f"a model of --arch {MODELS[name][0].split()[0]} needs --task nar_translation, and this is bang_pretraining"
            in said
        )


@pytest.mark.parametrize("name", ["cmlm", "nat", "ctc", "dag", "blockwise", "bang"])
def test_a_checkpoint_is_decoded_and_validated_under_its_task_only(data, tmp_path, name):
    own = MODELS[name][1]
    here("fairseq-train", data, *flags(name, own, "nar_translation"), "--save-dir", tmp_path)
    common = (
        "--path",
        tmp_path / "checkpoint_last.pt",
        "--cpu",
        "--user-dir",
        ROOT / "nar_plugins",
        "--num-workers",
        "0",
    )
    for task in ((), ("--task", "translation"), ("--task", "translation_lev")):
        for command in ("fairseq-generate", "fairseq-interactive"):
            said = refusal(command, data, *common, *task)
            assert "needs --task nar_translation" in said
    here("fairseq-validate", data, *common, "--task", "nar_translation", "--valid-subset", "valid", "--batch-size", "3")


def test_hydra_is_told_the_command_that_knows_the_flags(data):
    """fairseq-hydra-train hands a model the values of its configuration file, and no defaults of flags."""
    config = {"_name": "nar_translation", "data": str(data), "source_lang": "src", "target_lang": "tgt"}
    common = {"amp": False, "cpu": True, "bf16": False, "fp16": False, "tpu": False}
    checkpoint = {"save_dir": str(data), "restore_file": "checkpoint_last.pt", "finetune_from_model": None}
    given = OmegaConf.create({"task": config, "common": common, "checkpoint": checkpoint})
    task = tasks.setup_task(given.task)
    for name in ("cmlm_tiny", "nat_tiny", "dag_tiny", "blockwise_tiny", "bang_tiny"):
        for more in ({}, {"encoder_layers": 1}):
            with pytest.raises(
                ValueError, match=f"fairseq-hydra-train cannot read the options of {name}.* --arch {name}"
            ):
                task.build_model(OmegaConf.create({"_name": name, **more}))


def test_a_users_own_criterion_is_asked_itself(data, tmp_path):
    """It may be no subclass of ours, and trains what it can."""

    class Own(FairseqCriterion):
        def forward(self, model, sample, reduce=True):
            raise ValueError("this is my own loss")

    name = "loss_of_a_user"
    register_criterion(name)(Own)
    try:
        for model in ("cmlm", "blockwise", "transformer"):
            said = refusal(
                "fairseq-train", data, *flags(model, name, "nar_translation"), "--save-dir", tmp_path / model
            )
            assert said == "this is my own loss"
    finally:
        del CRITERION_REGISTRY[name]


@pytest.mark.parametrize(
    "arch, more, said",
    [
        ("transformer_tiny", ("--criterion", "nat_loss"), "nat_loss trains fairseq's own non-autoregressive models"),
        (
            "transformer_tiny",
            ("--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "10"),
            "--adaptive-softmax-cutoff: nothing",
        ),
        ("cmlm_tiny", ("--criterion", "nar_loss", "--tpu"), "--tpu: there is no torch_xla"),
        ("cmlm_tiny", ("--criterion", "nar_loss", "--max-tokens", "2"), "longer than --max-tokens 2"),
    ],
)
def test_what_cannot_be_trained_here_is_named(data, tmp_path, arch, more, said):
    given = ("--cpu", "--user-dir", ROOT / "nar_plugins", *TRAIN, "--task", "nar_translation", "--arch", arch, *more)
    assert said in refusal("fairseq-train", data, *given, "--save-dir", tmp_path)
