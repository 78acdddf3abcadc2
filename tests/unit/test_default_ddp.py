"""Every model trains under PyTorch's DistributedDataParallel, fairseq's default: it refuses a parameter without a
gradient.

The wrapping is fairseq's, in a group of one process; tests/system/test_two_processes.py has two.
"""

import pytest
import torch
from conftest import source_batch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.models import DistributedFairseqModel
from fairseq.registry import REGISTRIES
from test_cmlm import transformer_checkpoint
from tiny import arguments, model

from nar_plugins.criterions.base import unwrapped

PAD, EOS = 1, 2
SOURCE, TARGET = source_batch([5, 9, 4], 20), source_batch([6, 3, 8], 20, seed=8)
FERTILITIES = torch.zeros_like(SOURCE)
FERTILITIES[:, 0] = TARGET.ne(PAD).sum(1)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sample():
    before = TARGET.roll(1, 1)
    before[:, 0] = EOS
    return {
        "target": TARGET,
        "ntokens": int(TARGET.ne(PAD).sum()),
        "id": torch.arange(3),
        "net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1), "prev_output_tokens": before},
    }


def wrapped_by_fairseq(one):
    settings = DistributedTrainingConfig(device_id=0)
    settings.tpu = False  # fairseq's trainer sets it
    assert settings.ddp_backend == "pytorch_ddp"
    return DistributedFairseqModel(settings, one, torch.distributed.group.WORLD, torch.device("cpu"))


TRAININGS = {
    "cmlm": ("nar_loss", "cmlm_tiny", ()),
    "cmlm, pooled length, untied": ("nar_loss", "cmlm", ("--encoder-embed-dim", "64", "--decoder-embed-dim", "64")),
    "nat": ("nar_loss", "nat_tiny", ()),
    "nat, glancing": ("nar_loss", "nat_tiny", ("--source-copy", "soft", "--glancing", "0.5")),
    "nat, ctc": ("nar_loss", "nat_tiny", ("--ctc", "--upsample", "3")),
    "dag": ("nar_loss", "dag_tiny", ("--upsample", "3")),
    "dag, glancing, untied": ("nar_loss", "dag_tiny", ("--upsample", "3", "--glancing", "0.5")),
    "dag, fuzzy": ("nar_loss", "dag_tiny", ("--upsample", "3", "--glancing", "0.1", "--fuzzy-ngram", "2")),
    "blockwise, one head an update": ("blockwise_loss", "blockwise_tiny", ("--block-loss", "sample")),
    "blockwise, all heads, frozen": ("blockwise_loss", "blockwise_tiny", ("--block-loss", "mean", "--freeze-base")),
    "blockwise, sequential": (
        "blockwise_loss",
        "blockwise_tiny",
        ("--block-head", "sequential", "--block-loss", "weighted", "--block-positions", "0.3"),
    ),
    "bang": ("bang_loss", "bang_tiny", ("--bang-rows", "sample:1")),
    "bang, modes in turn": ("bang_loss", "bang_tiny", ("--nar-ratio", "0.5")),
    "cmlm, distilled": ("nar_loss", "cmlm_tiny", ("--teacher", "ar.pt")),
    "nat, fine-tuned": ("nar_loss", "nat_tiny", ("--teacher", "ar.pt", "--finetune-weight", "0.25")),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_update_has_the_gradients_of_the_unwrapped_model(name, group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transformer_checkpoint(tmp_path / "ar.pt")
    criterion, arch, flags = TRAININGS[name]
    found = []
    for wrap in (lambda one: one, wrapped_by_fairseq):
        one, task = model(*flags, arch=arch, criterion=criterion)
        made = REGISTRIES["criterion"]["registry"][criterion].build_criterion(
            arguments(*flags, arch=arch, criterion=criterion), task
        )
        trained, batch = wrap(one.train()), sample()
        assert unwrapped(trained) is one
        if getattr(one, "needs_fertilities", False):
            batch["net_input"]["fertilities"] = FERTILITIES
        for update in (1, 2, 3):
            torch.manual_seed(update)
            loss, size, _ = made(trained, task.corrupt(batch, update))
            loss.backward()
            found.append({n: p.grad.clone() for n, p in one.named_parameters() if p.grad is not None})
            one.zero_grad(set_to_none=False)
    assert all(found)
    for alone, wrapped in zip(found[:3], found[3:]):
        for parameter, gradient in wrapped.items():
            torch.testing.assert_close(gradient, alone.get(parameter, torch.zeros_like(gradient)))
