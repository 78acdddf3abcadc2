"""Linear layers in int8: one scale for each output of the weight, one for each row of the input.

The scale of a row is that of its own largest value (dynamic quantisation), so that a sentence's output does not depend
on the others of its batch. Products are accumulated in int32 and scaled in float32; a test has the plain form.
"""

import math
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

LARGEST = 127  # of a quantised number; -128 is not used, so that the range is symmetric
ZERO = 128  # of the input: oneDNN is fast for unsigned inputs only
ROUNDED_ZERO = torch.tensor(ZERO + 0.5)
TINY = 1e-30  # the scale of a row of zeros


class QuantisedRows(NamedTuple):
    """An input of linear layers, quantised once for all of them."""

    numbers: Tensor  # (P, in) uint8, around ZERO
    scales: Tensor  # (P, 1) float32
    shape: Tuple[int, ...]  # of the input, without its last dimension
    dtype: torch.dtype  # of the input


def quantise(x: Tensor) -> QuantisedRows:
    """Quantise every row of (..., in) by its own largest value. A row with NaN or infinity stays NaN in the product."""
    rows = x.reshape(-1, x.size(-1)).float()
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=TINY).div_(LARGEST)
    # all numbers are positive, so that the cast to integers rounds to the nearest
    numbers = torch.addcdiv(ROUNDED_ZERO, rows, scales).to(torch.uint8)
    return QuantisedRows(numbers, scales, x.shape[:-1], x.dtype)


def int8_product(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Union[Tensor, QuantisedRows]], Tensor]:
    """The product with a weight (out, in) that is quantised and packed here: (..., in) -> (..., out)."""
    weight = weight.float()
    scales = weight.abs().amax(1).clamp_(min=TINY).div_(LARGEST)
    quantised = (weight / scales.unsqueeze(1)).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(quantised, None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    bias = None if bias is None else bias.float()
    linear = torch.ops.onednn.qlinear_pointwise

    def product(x: Union[Tensor, QuantisedRows]) -> Tensor:
        rows = x if isinstance(x, QuantisedRows) else quantise(x)
        y = linear(
            rows.numbers, 1.0, ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )  # the scale of the input is 1: every row has its own
        y = y.mul_(rows.scales) if bias is None else torch.addcmul(bias, y, rows.scales, out=y)
        return y.view(*rows.shape, -1).to(rows.dtype)

    return product


def int8_bytes(weight: Tensor) -> int:
    """The memory of a weight (out, in) in int8, with its scales and zero points."""
    return weight.numel() + 12 * weight.size(0)


def int8_lacks(device: torch.device) -> Optional[str]:
    """What is missing for int8 on a device; None: nothing.

    Without VNNI oneDNN adds pairs of products in 16 bits, which overflow.
    """
    if device.type != "cpu":
        return f"it is for CPUs, and this is {device.type}"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise") or not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN with int8"
    return None if torch.cpu._is_vnni_supported() else "this processor has no VNNI instructions"


def megabytes(number: float) -> str:
    """Bytes for the log."""
    return f"{math.ceil(number / 1e5) / 10:,.1f} MB"
