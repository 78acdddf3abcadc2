"""Several linear layers with the same input as one product, in a prepared model."""

from typing import List, Optional, Sequence, Tuple

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


class FusedPart:
    """The outputs of some of the layers of a ``FusedLinear``, for a module that may be called without the others.

    Args:
        whole: the product of the layers of several modules. first, end: which of them are this module's.
    """

    def __init__(self, whole: FusedLinear, first: int, end: int):
        self.whole, self.first, self.end = whole, first, end

    def usable(self) -> bool:
        """As ``FusedLinear``'s."""
        return self.whole.usable()

    def __call__(self, x) -> Tuple[Tensor, ...]:
        """The outputs of the module's layers, (..., out) each; those of the others are computed, too."""
        return self.whole(x)[self.first : self.end]


def fuse(model: nn.Module) -> None:
    """Give every module that names layers of its own in ``fuses`` its ``fused`` product of them, where it can be.

    The cross-attentions of a decoder read the same states: they have one product, and each a part of it.

    Args:
        model: a copy that has ``PreparedLinear`` layers.
    """
    for module in model.modules():
        layers = [getattr(module, name) for name in getattr(module, "fuses", ())]
        if len(layers) > 1 and alike(layers):
            module.fused = FusedLinear(layers)
    for module in model.modules():
        attentions = [layer.encoder_attn for layer in cross_attending(module)]
        groups = [getattr(attention, "fused", None) for attention in attentions]
        if len(groups) > 1 and all(type(fused) is FusedLinear for fused in groups):
            layers = [layer for fused in groups for layer in fused.layers]
            if alike(layers):
                whole, first = FusedLinear(layers), 0
                for attention, fused in zip(attentions, groups):
                    attention.fused = FusedPart(whole, first, first + len(fused.layers))
                    first += len(fused.layers)


def alike(layers: Sequence[nn.Module]) -> bool:
    """Whether layers can be stacked: all are ``PreparedLinear``, with as many inputs, and with biases or without."""
    forms = {(layer.in_features, layer.bias is None) for layer in layers if type(layer) is PreparedLinear}
    return len(forms) == 1 and all(type(layer) is PreparedLinear for layer in layers)


def cross_attending(module: nn.Module) -> List[nn.Module]:
    """The layers of a decoder whose cross-attentions all read the same states; of other modules none."""
    if not getattr(module, "one_source", False):
        return []
    return [layer for layer in module.layers.children() if getattr(layer, "encoder_attn", None) is not None]


def products_of(model: nn.Module) -> List[FusedLinear]:
    """The products of ``fuse``, each once."""
    fused = [getattr(module, "fused", None) for module in model.modules()]
    products = [part.whole if type(part) is FusedPart else part for part in fused if part is not None]
    return list({id(product): product for product in products}.values())


def one_product(attentions: Sequence[nn.Module]) -> Optional[FusedLinear]:
    """The product of the keys and values of all of these cross-attentions, in their order; None: they have none."""
    parts = [getattr(attention, "fused", None) for attention in attentions]
    if not parts or not all(type(part) is FusedPart for part in parts):
        return None
    whole, places = parts[0].whole, [(part.first, part.end) for part in parts]
    ends = [0, *(end for _, end in places)]
    in_order = all(part.whole is whole for part in parts) and [first for first, _ in places] == ends[:-1]
    return whole if in_order and ends[-1] == len(whole.layers) and whole.usable() else None
