"""Data-parallel training on CPUs."""

import functools

from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel


def name_no_device_on_cpus() -> None:
    """Let ``--ddp-backend pytorch_ddp`` (fairseq's default) train on CPUs.

    fairseq hands PyTorch the number of a GPU whatever the model's device is, and PyTorch refuses a number for a model
    that is on a CPU. (No upstream issue.)
    """
    if isinstance(distributed_fairseq_model.DistributedDataParallel, type):
        distributed_fairseq_model.DistributedDataParallel = wrap_without_device


@functools.wraps(DistributedDataParallel, updated=())
def wrap_without_device(module, *args, **kwargs):
    if all(parameter.device.type == "cpu" for parameter in module.parameters()):
        kwargs.update(device_ids=None, output_device=None)
    return DistributedDataParallel(module, *args, **kwargs)
