"""What the tasks do alike: the precision of the training step."""
from types import SimpleNamespace

import pytest
import torch

import tiny


class Step:
    """A criterion and an optimizer that say what fairseq's step does around them."""

    def __init__(self):
        self.seen = {}

    def __call__(self, model, sample):
        self.seen = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
        return torch.zeros((), requires_grad=True), 1, {}

    def backward(self, loss):
        self.after = torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("flags, on", [((), False), (("--train-dtype", "bfloat16"), True)])
def test_the_criterion_is_in_bfloat16_on_every_device(device, flags, on, monkeypatch):
    """fairseq turns CUDA's autocast off around the criterion; no GPU is needed to see it."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    task, step = tiny.task(*flags), Step()
    sample = {"net_input": {"src_tokens": SimpleNamespace(device=torch.device(device), size=lambda dim: 5)}}
    model = SimpleNamespace(train=lambda: None, set_num_updates=lambda update: None)
    task.train_step(sample, model, step, step, 1)
    assert step.seen[device] is on and step.after is False


def test_two_ways_to_half_precision_are_refused():
    with pytest.raises(ValueError, match="--train-dtype bfloat16 and --amp"):
        tiny.task("--train-dtype", "bfloat16", "--amp")
