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


def canvas_width(lengths: Tensor, limit: int) -> int:
    """The largest of the lengths (R,) int64 of canvases, and what an export may know of it: it is at most ``limit``,
    and at least 2. To torch.export a dimension of 1 is a case of its own, so that every canvas of a graph has two
    positions.
    """
    if not torch.compiler.is_exporting():
        return int(lengths.max())
    width = lengths.max().clamp(min=2).item()
    torch._check(width >= 2)
    torch._check(width <= limit)
    return width
