"""Where torch.export cannot follow: Python that asks a tensor for its values. Outside of an export nothing changes."""

import torch
from torch import Tensor


def is_padded(padding: Tensor) -> bool:
    """Whether a batch has padding: bool of any shape, True = padding.

    While the model is exported always True, because the graph has to serve padded and unpadded batches.
    """
    return torch.compiler.is_exporting() or bool(padding.any())


def count_up_to(ends: Tensor, steps: Tensor) -> Tensor:
    """How many of the ascending ``ends`` (R, S) int64 are at most each of ``steps`` (R, T) int64: (R, T) int64.

    ONNX has no binary search, so an export compares every pair.
    """
    if torch.compiler.is_exporting():
        return (ends.unsqueeze(1) <= steps.unsqueeze(2)).sum(2)
    return torch.searchsorted(ends, steps, right=True)
