"""Linear layers by oneDNN while decoding in float32 on a CPU.

PyTorch gives float32 products on CPUs to MKL, whose kernels use half of what an AMD processor with AVX-512 can do: oneDNN, which
PyTorch carries too, was measured 2.3 times faster on one (``scripts/bench_against_stock.py``) and as fast on an Intel one. On an AMD
processor that has AVX2 only MKL is as fast, and faster with few rows, because oneDNN reorders the weights in every call. A call of
it costs some 15 us more besides, which is several times the product itself where a small model decodes one sentence. Processors of
other kinds were not measured, and keep PyTorch's choice.
"""
from contextlib import contextmanager
from functools import partial
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


SMALL = 1 << 20  # multiplications; below it MKL is done before oneDNN has begun (measured on one core)
CPU_ROWS = 64  # rows of logits made and reduced at a time on a CPU, so that they stay in its cache


@contextmanager
def fast_linear(models, dtype: torch.dtype):
    """Within it large products of the linear layers of ``models`` are computed by oneDNN where that is faster: float32, no
    gradients, a CPU with AVX-512. Products of their weights outside the layers go through ``linear``.

    The weights stay where they are, so nothing has to be kept up to date while the models train in between.

    Args:
        dtype: the type of the decoding; an autocast chooses its own kernels.
    """
    usable = dtype == torch.float32 and faster()
    modules = dict.fromkeys(m for model in models if usable for m in model.modules())  # once each: an ensemble may repeat one
    layers = [m for m in modules if type(m) is nn.Linear and m.weight.dtype == torch.float32 and m.weight.device.type == "cpu"]
    layers = [m for m in layers if "forward" not in vars(m)]
    for layer in layers:
        layer.forward = partial(of_layer, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def faster() -> bool:
    """Whether oneDNN is there, on a processor where it is worth it."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and "AVX512" in torch.backends.cpu.get_cpu_capability()


def of_layer(layer: nn.Linear, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    return linear(x, layer.weight, layer.bias)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``F.linear`` without gradients, by whichever library is faster: (..., in) -> (..., out)."""
    small = x.numel() * weight.size(0) < SMALL
    if small or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not faster():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
