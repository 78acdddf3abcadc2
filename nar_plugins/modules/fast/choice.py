"""The choice of ``--decode-dtype auto``: float32 or bfloat16, by the time of the model's own products."""

from time import perf_counter
from typing import Tuple

import torch
import torch.nn as nn

from nar_plugins.modules.fast.linear import product
from nar_plugins.modules.precision import HOPELESS, cpu_has_bfloat16, layer_products

CANDIDATES = (torch.float32, torch.bfloat16)
TRIES = 3


def faster_decode_dtype(device: torch.device, model: nn.Module, rows: int) -> torch.dtype:
    """The faster type for decoding a model on a device; timed on CPUs, in about a second.

    Never int8, which changes the output more than rounding does.

    Args:
        rows: tokens of a batch.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    products = layer_products(model, rows)
    if not products:
        return torch.float32
    small = min(products, key=lambda shape: shape[1] * shape[2])
    seconds = product_seconds(small)
    if seconds[1] >= HOPELESS * seconds[0]:  # a CPU without bfloat16: a large product takes seconds
        return torch.float32
    totals = [0.0, 0.0]
    for shape, weight in products.items():
        totals = [total + weight * part for total, part in zip(totals, product_seconds(shape))]
    return CANDIDATES[totals[1] < totals[0]]


@torch.no_grad()
def product_seconds(shape: Tuple[int, int, int]) -> Tuple[float, float]:
    """Seconds of a prepared layer's product of (rows, inputs, outputs) in each candidate: the fastest of some tries."""
    rows, inputs, outputs = shape
    x, weight, bias = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    products = [product(weight, bias, dtype) for dtype in CANDIDATES]
    times = [[], []]
    for number in range(TRIES + 1):
        for compute, seconds in zip(products, times):
            start = perf_counter()
            compute(x)
            if number:  # the first is the warm-up
                seconds.append(perf_counter() - start)
    return min(times[0]), min(times[1])
