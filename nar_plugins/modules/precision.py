"""Where half precision must not go: softmaxes, scores and losses."""
import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()
