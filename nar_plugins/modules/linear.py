"""Linear layers by oneDNN while decoding in float32 on a CPU.

PyTorch gives float32 products on CPUs to MKL, whose kernels use half of what an AMD processor with AVX-512 can do:
oneDNN, which PyTorch carries too, was measured 2.3 times faster on one (``benchmarks/bench_against_stock.py``) and as
fast on an Intel one. On an AMD processor that has AVX2 only MKL is as fast, and faster with few rows, because oneDNN
reorders the weights in every call. A call of it costs some 15 us more besides, which is several times the product
itself where a small model decodes one sentence. Processors of other kinds were not measured, and keep PyTorch's choice.
"""

from contextlib import contextmanager
from typing import Callable, Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

SMALL = 1 << 20  # multiplications; below it MKL is done before oneDNN has begun (measured on one core)
LARGE_WEIGHT = (
    1 << 18
)  # numbers; a smaller weight is in the cache, and MKL is done first up to four times as many products
CPU_ROWS = 64  # rows of logits made and reduced at a time on a CPU, so that they stay in its cache


@contextmanager
def fast_linear(models, dtype: torch.dtype):
    """Within it large products of the linear layers of ``models`` are computed by oneDNN where that is faster: float32,
    no gradients, a CPU with AVX-512. Products of their weights outside the layers go through ``linear``.

    The weights stay where they are, so nothing has to be kept up to date while the models train in between.

    Args:
        dtype: the type of the decoding; an autocast chooses its own kernels.
    """
    chosen = servable(models) if dtype == torch.float32 and faster() else {}
    for layer, forward in chosen.items():  # not set as attributes: for a module that takes as long as a small product
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer in chosen:
            del vars(layer)["forward"]


def servable(models) -> Dict[nn.Linear, Callable[[Tensor], Tensor]]:
    """The ``forward`` of every linear layer of ``models`` whose weight is a float32 parameter on a CPU.

    A weight that is no parameter (weight normalisation, pruning) is made anew by every call of its layer, which keeps
    its own ``forward``; so does a layer that has another one already.
    """
    found = {}
    for module in (m for model in models for m in model.modules()):
        if type(module) is not nn.Linear or "forward" in vars(module):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and weight.dtype == torch.float32 and weight.is_cpu:
            found[module] = chosen_by_size(weight, module.bias)
    return found


def chosen_by_size(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer's ``forward``: (..., in) -> (..., out).

    All that can be known of the layer is settled here. A product that is left to MKL then costs no more than in the
    layer
    itself, which looks up its weight and bias in every call: a small model makes hundreds of them a sentence.
    """
    least = -(-small(weight) // weight.size(0))  # numbers of the input from which on the product is a large one
    large = torch.ops.mkldnn._linear_pointwise

    def forward(x: Tensor) -> Tensor:
        if x.numel() < least or x.dtype != torch.float32:
            return F.linear(x, weight, bias)
        return large(x, weight, bias, "none", [], "")

    return forward


def small(weight: Tensor) -> int:
    """Multiplications below which a product with ``weight`` is left to MKL (``benchmarks/bench_linear.py``)."""
    return SMALL if weight.numel() >= LARGE_WEIGHT else 4 * SMALL


def faster() -> bool:
    """Whether oneDNN is there, on a processor where it is worth it."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and "AVX512" in torch.backends.cpu.get_cpu_capability()


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``F.linear`` without gradients, by whichever library is faster: (..., in) -> (..., out)."""
    few = x.numel() * weight.size(0) < small(weight)
    if few or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not faster():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
