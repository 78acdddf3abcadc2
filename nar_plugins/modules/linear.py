"""Linear layers computed by oneDNN while decoding in float32 on a CPU.

PyTorch computes float32 products on CPUs with MKL. oneDNN, which PyTorch also includes, was measured 2.3 times faster
on an AMD processor with AVX-512 (``benchmarks/bench_against_stock.py``) and as fast on an Intel one. On an AMD
processor with AVX2 only, MKL is as fast, and faster with few rows, because oneDNN reorders the weights in every call. A
call of oneDNN costs some 15 us more, several times the product itself where a small model decodes one sentence. Other
processors were not measured and keep PyTorch's choice.
"""

from contextlib import contextmanager
from typing import Callable, Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

SMALL = 1 << 20  # multiplications; a smaller product is faster with MKL (measured on one core)
LARGE_WEIGHT = 1 << 18  # elements; a smaller weight stays in the cache, and MKL is faster up to 4 * SMALL
CPU_ROWS = 64  # rows of logits computed and reduced at a time on a CPU, so that they stay in its cache


@contextmanager
def fast_linear(models, dtype: torch.dtype):
    """Within it oneDNN computes large products of the linear layers of ``models`` where it is faster: in float32,
    without gradients, on a CPU with AVX-512. Use ``linear`` for products of their weights outside the layers.

    The weights are not copied, so nothing has to be updated when the models train in between.

    Args:
        dtype: the type of decoding; autocast chooses other kernels.
    """
    forwards = onednn_forwards(models) if dtype == torch.float32 and onednn_is_faster() else {}
    for layer, forward in forwards.items():  # in vars: setting a module's attribute takes as long as a small product
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer in forwards:
            del vars(layer)["forward"]


def onednn_forwards(models) -> Dict[nn.Linear, Callable[[Tensor], Tensor]]:
    """The new ``forward`` of every linear layer of ``models`` whose weight is a float32 parameter on a CPU.

    A weight that is no parameter (weight normalisation, pruning) is computed in every call of its layer. Such a layer
    keeps its ``forward``, and so does one whose ``forward`` is already replaced.
    """
    forwards = {}
    for module in (m for model in models for m in model.modules()):
        if type(module) is not nn.Linear or "forward" in vars(module):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and weight.dtype == torch.float32 and weight.is_cpu:
            forwards[module] = forward_by_size(weight, module.bias)
    return forwards


def forward_by_size(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer's ``forward``, (..., in) -> (..., out), that chooses the library by the size of the product.

    The layer's weight and bias are looked up here, not in every call, so that a product left to MKL costs no more than
    in the layer itself. A small model computes hundreds of them per sentence.
    """
    threshold = -(-onednn_threshold(weight) // weight.size(0))  # elements of the input
    onednn = torch.ops.mkldnn._linear_pointwise

    def forward(x: Tensor) -> Tensor:
        if x.numel() < threshold or x.dtype != torch.float32:
            return F.linear(x, weight, bias)
        return onednn(x, weight, bias, "none", [], "")

    return forward


def onednn_threshold(weight: Tensor) -> int:
    """Multiplications from which on oneDNN computes a product with ``weight`` (``benchmarks/bench_linear.py``)."""
    return SMALL if weight.numel() >= LARGE_WEIGHT else 4 * SMALL


def onednn_is_faster() -> bool:
    """Whether oneDNN is available and the processor has AVX-512."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and "AVX512" in torch.backends.cpu.get_cpu_capability()


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``F.linear`` without gradients, with the faster library: (..., in) -> (..., out)."""
    small = x.numel() * weight.size(0) < onednn_threshold(weight)
    if small or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not onednn_is_faster():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
