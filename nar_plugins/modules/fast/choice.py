"""The choice of ``--decode-dtype auto``: float32 or half precision, by the time of the model's own products."""

from time import perf_counter
from typing import List, Tuple

import torch
import torch.nn as nn

from nar_plugins.modules.fast.half_weights import fbgemm_has_float16, fits_half
from nar_plugins.modules.fast.linear import product
from nar_plugins.modules.precision import GAIN, HOPELESS, cpu_has_bfloat16, layer_products

TRIES = 3


def faster_decode_dtype(device: torch.device, model: nn.Module, rows: int, float16: bool = True) -> torch.dtype:
    """The faster type for decoding a model on a device; timed on CPUs, in about a second.

    Never int8, which changes the output more than rounding does.

    Args:
        rows: tokens of a batch.
        float16: it is a candidate; False where a model that decodes beside this one does not fit it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    types = candidates(model) if device.type == "cpu" else []
    types = [dtype for dtype in types if float16 or dtype != torch.float16]
    products = layer_products(model, rows)
    if len(types) < 2 or not products:
        return torch.float32
    small = min(products, key=lambda shape: shape[1] * shape[2])
    seconds = product_seconds(small, types)
    # on a CPU that has bfloat16 in name only a large product takes seconds
    types = [dtype for dtype, taken in zip(types, seconds) if taken < HOPELESS * seconds[0]]
    totals = [0.0] * len(types)
    for shape, weight in products.items():
        totals = [total + weight * part for total, part in zip(totals, product_seconds(shape, types))]
    fastest = min(totals)
    return types[totals.index(fastest)] if fastest < GAIN * totals[0] else torch.float32


def candidates(model: nn.Module) -> List[torch.dtype]:
    """The types that may be the fastest on this CPU, and can hold the model's weights."""
    if any(weight.dtype != torch.float32 for weight in weights_of(model)):
        return [torch.float32]
    half = [(torch.float16, fbgemm_has_float16() and fits_float16(model)), (torch.bfloat16, cpu_has_bfloat16())]
    return [torch.float32, *(dtype for dtype, there in half if there)]


def fits_float16(model: nn.Module) -> bool:
    """Whether float16 can hold the weights of a model's linear layers."""
    return all(map(fits_half, weights_of(model)))


def weights_of(model: nn.Module) -> List[torch.Tensor]:
    """The weights of a model's linear layers."""
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def product_seconds(shape: Tuple[int, int, int], types: List[torch.dtype]) -> List[float]:
    """Seconds of a prepared layer's product of (rows, inputs, outputs) in each type: the fastest of some tries."""
    rows, inputs, outputs = shape
    x, weight, bias = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    products = [product(weight, bias, dtype) for dtype in types]
    times: List[List[float]] = [[] for _ in types]
    for number in range(TRIES + 1):
        for compute, seconds in zip(products, times):
            start = perf_counter()
            compute(x)
            if number:  # the first is the warm-up
                seconds.append(perf_counter() - start)
    return list(map(min, times))
