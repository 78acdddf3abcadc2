"""Products in float32 of weights that are kept in float16: ``--decode-dtype float16`` on x86 CPUs.

FBGEMM casts a weight's block to float32 while it multiplies, so that half of the memory is read. On a processor with
AVX2 the product of four rows takes a fifth to half of the time of PyTorch's in float32, of 28 rows a half to three
quarters, of hundreds as long (``benchmarks/bench_products.py``). Inputs, sums and outputs are float32: only the weights
are rounded, to eleven bits; bfloat16 rounds both, to eight. A call takes 20 us before it multiplies, so small weights
are rounded, too, but stay in float32.
"""

from typing import Callable, Optional

import torch
from torch import Tensor

SMALL = 1 << 17  # numbers; a smaller weight is faster in float32
LARGEST = 65504  # of float16


def keeps_weights_in_half(weight: Tensor, dtype: Optional[torch.dtype]) -> bool:
    """Whether a layer's weight is kept in float16 for products in float32."""
    return dtype == torch.float16 and weight.is_cpu and weight.dtype == torch.float32 and fbgemm_has_float16()


def fbgemm_has_float16() -> bool:
    """Whether this PyTorch has the product, and this processor its instructions."""
    has = hasattr(torch.ops.quantized, "linear_prepack_fp16") and hasattr(torch.ops.quantized, "linear_dynamic_fp16")
    return has and fbgemm_is_the_engine() and "AVX" in torch.backends.cpu.get_cpu_capability()


def fbgemm_is_the_engine() -> bool:
    """Whether PyTorch packs weights in fewer bits for FBGEMM; a user may choose another engine."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def half_weight_product(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """The product with a large weight (out, in) in float16, or float16's largest where it is larger: (..., in) ->
    (..., out) float32.
    """
    packed, product = torch.ops.quantized.linear_prepack_fp16(weight, bias), torch.ops.quantized.linear_dynamic_fp16
    return lambda x: product(x.float(), packed)


def rounded(weight: Tensor) -> Tensor:
    """A weight in float32 with float16's numbers."""
    return weight.half().float()


def half_bytes(weight: Tensor) -> int:
    """The memory of a weight as it is read; FBGEMM's also fills the inputs up to multiples of 512."""
    return weight.numel() * (2 if weight.numel() >= SMALL else 4)


def fits_half(weight: Tensor) -> bool:
    """Whether a weight's numbers are in float16's range; NaN is not."""
    ends = weight.detach().aminmax() if weight.numel() else ()  # without a copy
    return all(abs(float(end)) <= LARGEST for end in ends)
