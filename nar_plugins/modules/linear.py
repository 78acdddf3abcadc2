"""The float32 product of a linear layer without gradients, by the faster of PyTorch's two libraries on this CPU.

PyTorch computes float32 products on CPUs with MKL. With AVX-512 something else is faster, and it depends on the maker
(``benchmarks/bench_linear.py``, ``bench_products.py``): on an AMD processor oneDNN, up to 2.3 times with many rows; on
an Intel one (Ice Lake) MKL with the weight transposed. On an AMD processor with AVX2 only, oneDNN is as fast as MKL
where it reorders the weight in every call, and faster with some tens of rows of a large weight that is reordered once:
a pass over one sentence takes 0.9 of the time. A call of oneDNN costs some 15 to 40 us
more, several times the product itself where a small model decodes one sentence. Other processors were not measured and
keep PyTorch's choice. ``modules/fast`` has the layers that keep a reordered weight.
"""

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.cpu import made_by_amd, made_by_intel

SMALL = 1 << 22  # multiplications; a smaller product is faster with MKL (measured on one core)
LARGE_WEIGHT = 1 << 18  # elements; a larger weight does not stay in the cache, and oneDNN reads it faster for one row
REORDERED = 1 << 20  # multiplications from which on oneDNN is faster although it reorders a large weight in the call
CPU_ROWS = 64  # rows of logits computed and reduced at a time on a CPU, so that they stay in its cache
CPU_LOGITS = 1 << 19  # as many logits are at a time no slower, where the vocabulary is small


def product_by_size(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """A function (..., in) -> (..., out) that chooses the library by the size of the product.

    What it needs is looked up here, not in every call, so that a product left to MKL costs no more than in PyTorch's
    layer: a small model computes hundreds of them per sentence. The first large product makes a second copy of the
    weight, in oneDNN's order.
    """
    threshold = -(-onednn_threshold(weight) // weight.size(0))  # elements of the input
    onednn, packed = torch.ops.mkldnn._linear_pointwise, None

    def product(x: Tensor) -> Tensor:
        nonlocal packed
        if x.numel() < threshold or x.dtype != torch.float32:
            return F.linear(x, weight, bias)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.size(-1))
        return onednn(x, packed, bias, "none", [], "")

    return product


def transposed_product(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """A function (..., in) -> (..., out) by MKL. The first product makes a copy of the weight, transposed."""
    transposed = None

    def product(x: Tensor) -> Tensor:
        nonlocal transposed
        if transposed is None:
            transposed = weight.t().contiguous().t()  # PyTorch gives MKL the transpose of what it is given
        return F.linear(x, transposed, bias)

    return product


def onednn_threshold(weight: Tensor) -> int:
    """Multiplications from which on oneDNN computes a product with a ``weight`` that is reordered once
    (``benchmarks/bench_linear.py``, ``bench_products.py``).

    A large weight has one form for any number of rows. With another one for a single row, both took turns in the cache.
    """
    return 0 if weight.numel() >= LARGE_WEIGHT else SMALL


def onednn_is_faster() -> bool:
    """Whether oneDNN is available and the processor has AVX-512, and is not Intel's."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and has_avx512() and not made_by_intel()


def transposed_is_faster() -> bool:
    """Whether MKL is available, and faster with a transposed weight: on Intel processors with AVX-512."""
    return torch.backends.mkl.is_available() and has_avx512() and made_by_intel()


def reordered_is_faster(weight: Tensor) -> bool:
    """Whether oneDNN is faster once a weight is reordered, though not before: a large one, on AMD's with AVX2."""
    avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2" and made_by_amd()
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return avx2 and available and weight.numel() >= LARGE_WEIGHT


def has_avx512() -> bool:
    """Whether PyTorch uses AVX-512."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``F.linear`` without gradients, with the faster library: (..., in) -> (..., out)."""
    small = x.numel() * weight.size(0) < max(REORDERED, onednn_threshold(weight))
    if small or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not onednn_is_faster():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
