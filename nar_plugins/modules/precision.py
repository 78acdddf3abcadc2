"""Where half precision must not go (softmaxes, scores and losses), and where it is no use."""
from time import perf_counter

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where ``device`` computes products of it faster than of float32, else float32.

    Every GPU of PyTorch's with bfloat16 in hardware does. CPUs differ: with AVX512-BF16 or AMX bfloat16 is two to three times
    as fast, without them ten to thirty times slower, so products of both are timed, which takes some milliseconds.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    seconds = {dtype: min(product_times(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    return min(seconds, key=seconds.get)


def product_times(dtype: torch.dtype, tries: int = 9):
    """Seconds that one product of the size of a small feed-forward layer takes on the CPU, several times."""
    x, weight = torch.ones(256, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    x @ weight  # the first one prepares
    for _ in range(tries):
        start = perf_counter()
        x @ weight
        yield perf_counter() - start
