"""A linear layer of a prepared model: the parameters of the model's own layer, and the fastest form of its product."""

from functools import partial
from typing import Callable, Dict, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.forms import Int8Form, pack
from nar_plugins.modules.fast.half_weights import SMALL, half_weight_product, keeps_weights_in_half, rounded
from nar_plugins.modules.fast.int8 import int8_product, quantise, quantise_weight
from nar_plugins.modules.linear import (
    onednn_is_faster,
    product_by_size,
    reordered_is_faster,
    transposed_is_faster,
    transposed_product,
)
from nar_plugins.modules.precision import cpu_has_bfloat16


class PreparedLinear(nn.Linear):
    """The layer in a prepared model (``prepare.py``); it has no parameters of its own.

    Args:
        source: the dictionary of parameters of the module that owns them, shared: a new parameter in it is seen.
        weight, bias: their names in it.
        owns: the source is an ``nn.Linear``'s, whose place this layer takes.

    Attributes:
        dtype: what it was prepared for. in_int8: the products are in int8. int8: the quantised weight, once it is made.
        in_float32: inputs and outputs are in float32; the weight may be in float16.
        looked_up: the int8 weight is one whose rows can be read.
        plain: torch.compile reads the product, so that it must be PyTorch's own.
    """

    plain = False

    def __init__(
        self, source: Dict[str, Optional[nn.Parameter]], weight: str = "weight", bias: str = "bias", owns=True
    ):
        nn.Module.__init__(self)
        self.out_features, self.in_features = source[weight].shape
        self.source, self.names = source, (weight, bias)
        if owns:
            vars(self)["_parameters"] = source
        self.int8: Optional[Int8Form] = None
        self.prepare(None)

    @property
    def weight(self) -> Tensor:
        """(out, in), the model's own."""
        return self.source[self.names[0]]

    @property
    def bias(self) -> Optional[Tensor]:
        """(out,), the model's own, or None."""
        return self.source[self.names[1]]

    def prepare(self, dtype: Optional[torch.dtype], later: bool = False, looked_up: bool = False) -> None:
        """Cast, pack or quantise the weights of now; None: only use them.

        Args:
            later: in the first call of the layer, which may never come: a ``FusedLinear`` replaces it.
            looked_up: the weight is tied to a table.
        """
        self.dtype, self.in_int8, self.int8, self.looked_up = dtype, dtype == torch.int8, None, looked_up
        weight = self.weight
        whole = weight.dtype == torch.float32 and dtype in (None, torch.float32)
        self.in_float32 = whole or keeps_weights_in_half(weight, dtype)
        self.product = partial(self.first_product, dtype) if later else self.prepared_product(dtype, looked_up)

    def prepared_product(self, dtype: Optional[torch.dtype], looked_up: bool = False) -> Callable[[Tensor], Tensor]:
        """The function of the weights of now."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        if dtype != torch.int8:
            return (plain_product if self.plain else product)(weight, bias, dtype)
        self.int8 = pack(quantise_weight(weight), looked_up)
        return int8_product(self.int8, bias)

    def first_product(self, dtype: Optional[torch.dtype], x) -> Tensor:
        """The product, prepared now."""
        refuse_given_back(self.weight, "a hook on a layer")
        self.product = self.prepared_product(dtype)
        return self.product(x)

    def forward(self, x) -> Tensor:
        """(..., in), or, in int8, ``QuantisedRows`` -> (..., out)."""
        return self.product(x)


def given_back(weight: Tensor) -> bool:
    """Whether the memory of a weight was given back (``Prepared.release``)."""
    return weight.untyped_storage().nbytes() < weight.numel() * weight.element_size()


def refuse_given_back(weight: Tensor, what: str) -> None:
    """Raise where the memory of a weight was given back.

    Args:
        what: the beginning of the message: what needs it.
    """
    if given_back(weight):
        raise ValueError(
            f"{what}: the weights were given back when the model was made ready for int8: load the checkpoint again"
        )


def product(weight: Tensor, bias: Optional[Tensor], dtype: Optional[torch.dtype]) -> Callable[[Tensor], Tensor]:
    """The function (..., in) -> (..., out) of a layer in a type; PyTorch's own for None and where nothing is faster."""
    if dtype == torch.int8:
        return int8_product(pack(quantise_weight(weight)), bias)
    if keeps_weights_in_half(weight, dtype):
        if weight.numel() >= SMALL:
            return half_weight_product(weight, bias)
        weight, dtype = rounded(weight), torch.float32
    if dtype in (torch.bfloat16, torch.float16):
        return half_product(weight, bias, dtype)
    if dtype == weight.dtype == torch.float32 and weight.is_cpu:
        if onednn_is_faster() or reordered_is_faster(weight):
            return product_by_size(weight, bias)
        if transposed_is_faster():
            return transposed_product(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def stacked(layers: Sequence[PreparedLinear]) -> Tuple[Tensor, Optional[Tensor]]:
    """The weights (sum of out, in) and biases (sum of out,), or None, of layers with the same input, one below another;
    a single layer's are not copied.

    Args:
        layers: all with biases, or all without.
    """
    weights = [layer.weight.detach() for layer in layers]
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    if len(layers) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def plain_product(weight: Tensor, bias: Optional[Tensor], dtype: Optional[torch.dtype]) -> Callable[[Tensor], Tensor]:
    """``product`` in a form that torch.compile reads; in half precision the weights are cast here, once."""
    if keeps_weights_in_half(weight, dtype):
        weight = rounded(weight)
    elif dtype in (torch.bfloat16, torch.float16):
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return lambda x: F.linear(x.to(dtype), weight, bias)
    return lambda x: F.linear(x, weight, bias)


def half_product(weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The product in half precision, as autocast computes it, with weights that are cast here, once."""
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight) if weight.is_cpu and onednn_has_bfloat16(dtype) else None
    if packed is None:
        return lambda x: F.linear(x.to(dtype), weight, bias)
    onednn = torch.ops.mkldnn._linear_pointwise
    return lambda x: onednn(x.to(dtype), packed, bias, "none", [], "")


def onednn_has_bfloat16(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products in this type on this processor, which must be bfloat16."""
    return dtype == torch.bfloat16 and hasattr(torch.ops.mkldnn, "_linear_pointwise") and cpu_has_bfloat16()


def shared_input(x: Tensor, *layers: nn.Module):
    """The input (..., in) of several layers: quantised once, where all of them are in int8; it may be already."""
    return quantise(x) if isinstance(x, Tensor) and all(map(takes_quantised, layers)) else x


def takes_quantised(layer: nn.Module) -> bool:
    """Whether a layer is in int8, and no hook of a user's would see its input."""
    return in_int8(layer) and not (layer._forward_pre_hooks or layer._forward_hooks)


def in_int8(layer: nn.Module) -> bool:
    """Whether a linear layer is prepared for int8."""
    return type(layer) is PreparedLinear and layer.in_int8
