"""Float32 for softmaxes, scores and losses, and the choice between float32 and bfloat16 for training."""

from collections import Counter
from contextlib import nullcontext
from time import perf_counter
from typing import Dict, Iterator, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

SMALL = (256, 256, 256)  # rows, inputs and outputs of a small feed-forward layer's product
LARGEST = 4096  # inputs or outputs of a timed product; of a larger one, such as the vocabulary's, a part is timed
MULTIPLICATIONS = 1 << 28  # about, of one timed forward pass: some hundredths of a second
HOPELESS = 4  # times slower: bfloat16 without hardware support
GAIN = 0.95  # of float32's time: what takes more is not worth rounding, and may be noise


def full(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has what oneDNN multiplies bfloat16 with. PyTorch's own loop is ten to thirty times slower than
    float32, which a measurement would show, too, but not where other processes hold up the threads of float32.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def faster_dtype(device: torch.device, model: Optional[nn.Module] = None, rows: int = 256) -> torch.dtype:
    """bfloat16 where ``device`` trains faster with it than with float32, by a twentieth or more, else float32.

    GPUs with bfloat16 in hardware do. CPUs differ: with AMX bfloat16 is several times as fast, with AVX512-BF16 alone
    from twice to half as fast, depending on the sizes of the layers, and without either ten to thirty times slower. So
    both are timed on the products of the model's linear layers, which takes some tenths of a second.

    Args:
        model: the model to train; None: one small product is timed.
        rows: tokens in a batch.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    seconds = {dtype: min(product_times(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    products = layer_products(model, rows) if model is not None else {}
    if products and seconds[torch.bfloat16] < HOPELESS * seconds[torch.float32]:  # else a large product takes seconds
        seconds = {
            dtype: sum(weight * min(product_times(dtype, *shape, tries=3)) for shape, weight in products.items())
            for dtype in seconds
        }
    return torch.bfloat16 if seconds[torch.bfloat16] < GAIN * seconds[torch.float32] else torch.float32


def layer_products(model: nn.Module, rows: int) -> Dict[Tuple[int, int, int], float]:
    """The products to time for a model: (rows, inputs, outputs) -> their number in a pass through its linear layers.

    Args:
        rows: tokens in a batch; fewer are timed where that would take long.
    """
    shapes = Counter()
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        outputs, inputs = layer.weight.shape
        part = min(inputs, LARGEST), min(outputs, LARGEST)
        shapes[part] += inputs * outputs / (part[0] * part[1])
    numbers = sum(inputs * outputs for inputs, outputs in shapes)
    fewer = max(1, min(rows, SMALL[0], max(32, MULTIPLICATIONS // max(1, numbers))))
    return {(fewer, *shape): weight for shape, weight in shapes.items()}


def product_times(
    dtype: torch.dtype, rows: int = SMALL[0], inputs: int = SMALL[1], outputs: int = SMALL[2], tries: int = 9
) -> Iterator[float]:
    """Seconds that a linear layer's forward and backward pass take on the CPU, several times.

    bfloat16 is timed under autocast, as in training: the float32 weight and its gradient are converted.
    """
    x, weight = torch.ones(rows, inputs, requires_grad=True), torch.ones(outputs, inputs, requires_grad=True)
    gradient = torch.ones(rows, outputs, dtype=dtype)
    for number in range(tries + 1):
        start = perf_counter()
        with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
            y = F.linear(x, weight)
        torch.autograd.grad(y, (x, weight), gradient)
        if number:  # the first is the warm-up
            yield perf_counter() - start
