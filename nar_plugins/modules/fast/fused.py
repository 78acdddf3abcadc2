"""Several linear layers with the same input as one product, in a prepared model."""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.fast.linear import PreparedLinear, plain_product, product, stacked


class FusedLinear:
    """Linear layers whose weights are stacked; it stands beside them and has no parameters of its own.

    Args:
        layers: with as many inputs, and with biases or all without.

    Attributes:
        product: (..., in) or ``QuantisedRows`` -> (..., sum of out); None: the layers are faster one by one.
    """

    def __init__(self, layers: Sequence[PreparedLinear]):
        self.layers, self.sizes, self.product = list(layers), [layer.out_features for layer in layers], None

    def prepare(self, dtype: Optional[torch.dtype]) -> None:
        """Stack the weights of now, and pack, cast or quantise them."""
        self.product = None
        if dtype in (torch.int8, torch.bfloat16, torch.float16):
            made = plain_product if self.layers[0].plain else product
            self.product = made(*stacked(self.layers), dtype)

    def usable(self) -> bool:
        """Whether to call this and not the layers: it is faster, and no hook of a user's would see their input."""
        return self.product is not None and not any(
            layer._forward_pre_hooks or layer._forward_hooks for layer in self.layers
        )

    def __call__(self, x) -> Tuple[Tensor, ...]:
        """The outputs of the layers, (..., out) each, views of one tensor."""
        return self.product(x).split(self.sizes, -1)


def fuse(model: nn.Module) -> None:
    """Give every module that names layers of its own in ``fuses`` its ``fused`` product of them, where it can be.

    Args:
        model: a copy that has ``PreparedLinear`` layers.
    """
    for module in model.modules():
        layers = [getattr(module, name) for name in getattr(module, "fuses", ())]
        alike = {(layer.in_features, layer.bias is None) for layer in layers if type(layer) is PreparedLinear}
        if len(layers) > 1 and len(alike) == 1 and all(type(layer) is PreparedLinear for layer in layers):
            module.fused = FusedLinear(layers)
