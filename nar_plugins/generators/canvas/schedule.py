"""The number of positions that are masked again before every pass."""

import math

from torch import Tensor

SCHEDULES = ("linear", "cosine", "confidence")


def remask_count(lengths: Tensor, done: int, passes: int, schedule: str) -> Tensor:
    """The number of positions to mask again after ``done`` of ``passes`` passes; at least one.

    ``linear`` (which bounds ``confidence``) is Mask-Predict's N(1 - t/R), section 3.2, in integer arithmetic:
    the exact floor, where a floating-point product is one lower for some lengths. ``cosine`` is MaskGIT's
    N cos(pi t / 2R) (Chang et al. 2022, section 3.3).

    Args:
        lengths: (...,) int64.

    Returns:
        (...,) int64.
    """
    if schedule == "cosine":
        # 1e-9: cos is 1/2 at t/R = 2/3, and its rounding must not decide the floor there
        count = (lengths * math.cos(math.pi * done / (2 * passes)) + 1e-9).floor().long()
    else:
        count = lengths * (passes - done) // passes
    return count.clamp(min=1)
