"""The model behind the wrappers of data-parallel training."""

from torch.nn import Module


def unwrapped(model: Module) -> Module:
    """The model itself, for what is asked of it beside the forward pass; that goes through the wrappers, which collect
    gradients.

    fairseq wraps twice, the model in DistributedDataParallel and that in a proxy.
    """
    while isinstance(getattr(model, "module", None), Module):
        model = model.module
    return model
