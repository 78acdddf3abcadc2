"""Products that need not be exact, as those of drafts, which the model itself verifies: large weights in int8.

For one row a float32 product takes the time of reading its weight, and one in int8 reads a quarter
(``benchmarks/bench_products.py``). Without VNNI int8 pays for multiples of 512 inputs only, and others are in float16.
"""

from typing import Callable

import torch
from torch import Tensor

from nar_plugins.modules.fast.forms import pack
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16, half_weight_product
from nar_plugins.modules.fast.int8 import adds_in_16_bits, int8_product, quantise_weight
from nar_plugins.modules.fast.seven_bits import for_fbgemm

LARGE = 1 << 19  # numbers; a smaller weight is in the cache, and quantising the input takes as long as is saved
PACKED = 1 << 21  # numbers; a smaller weight is faster in rows, because there are few rows to multiply
SHARE = 0.25  # of the time in float32
Product = Callable[[Tensor, Tensor], Tensor]  # of (P, in) and a bias (out,) or (P, out): (P, out)


def rough_product(weight: Tensor) -> Product:
    """The product with a weight (out, in) on a CPU with int8 (``int8_lacks``): in fewer bits where that is faster."""
    if faster_in_int8(weight):
        product = int8_product_of_few_rows(weight)
    elif faster_in_half(weight):
        product = half_weight_product(weight.detach(), None)
    else:
        return exact_product(weight)
    return lambda x, bias: product(x).add_(bias)


def int8_product_of_few_rows(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with a weight (out, in) of few rows, in int8: (P, in) -> (P, out)."""
    quantised = quantise_weight(weight.detach())
    packed = weight.numel() >= PACKED or adds_in_16_bits()
    return int8_product(pack(quantised) if packed else quantised, None)


def exact_product(weight: Tensor) -> Product:
    """PyTorch's product with a weight (out, in); on a CPU of a transposed copy, which is faster for few rows."""
    transposed = as_autocast(weight).t()
    if weight.is_cpu:
        transposed = transposed.contiguous()
    return lambda x, bias: torch.addmm(bias, x, transposed)


def as_autocast(weight: Tensor) -> Tensor:
    """A weight in the type of autocast, which would cast a part of one in every product."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def faster_in_int8(weight: Tensor) -> bool:
    """Whether a weight is large, in float32, and has a kernel that pays."""
    return large_in_float32(weight) and (not adds_in_16_bits() or for_fbgemm(weight.size(1), looked_up=False))


def faster_in_half(weight: Tensor) -> bool:
    """Whether a weight is large, in float32, and float16 pays, which was measured without VNNI."""
    return large_in_float32(weight) and adds_in_16_bits() and fbgemm_has_float16()


def large_in_float32(weight: Tensor) -> bool:
    """Whether a weight is large, and in float32: autocast has not chosen another type."""
    return weight.numel() >= LARGE and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
