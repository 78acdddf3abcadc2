"""Data-parallel training on CPUs."""

from fairseq.models import distributed_fairseq_model

from nar_plugins.compat.replace import replaces


def name_no_device_on_cpus() -> None:
    """Let ``--ddp-backend pytorch_ddp``, fairseq's default, train on CPUs.

    fairseq always passes a GPU index to PyTorch, which refuses one for a model on the CPU. (No upstream issue.)
    """

    @replaces(distributed_fairseq_model, "DistributedDataParallel")
    def wrap(wrapper, module, **kwargs):
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            kwargs.update(device_ids=None, output_device=None)
        return wrapper(module=module, **kwargs)
