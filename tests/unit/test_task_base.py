"""What the tasks do alike: the precision of the training step."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from nar_plugins.modules import precision


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


@pytest.mark.parametrize("name", ["bfloat16", "auto"])
def test_two_ways_to_half_precision_are_refused(name):
    with pytest.raises(ValueError, match=f"--train-dtype {name} and --amp"):
        tiny.task("--train-dtype", name, "--amp")


@pytest.mark.parametrize("slower, faster", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_auto_is_the_faster_type_and_is_said_once(slower, faster, monkeypatch, caplog):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "product_times", lambda dtype: [2.0, 2.0] if dtype == slower else [9.0, 1.0])
    task = tiny.task("--train-dtype", "auto")
    with caplog.at_level("INFO"):
        assert [task.train_dtype(torch.device("cpu")) for _ in range(2)] == [faster, faster]
    assert [r.getMessage() for r in caplog.records if "auto" in r.getMessage()] == [
        f"--train-dtype auto: {str(faster)[6:]}, the faster one on this cpu"
    ]


def test_a_gpu_without_bfloat16_in_hardware_trains_in_float32(monkeypatch):
    for hardware, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: hardware and not including_emulation
        )
        assert precision.faster_dtype(torch.device("cuda")) == dtype


def test_this_cpu_has_a_faster_type():
    assert precision.faster_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
