"""T5's relative-position buckets for causal attention (Raffel et al. 2020, section 2.1)."""

import math

import torch
from torch import Tensor

BUCKETS, MAX_DISTANCE = 32, 128


def bucket(distance: int, buckets: int = BUCKETS, max_distance: int = MAX_DISTANCE) -> int:
    """The bucket of ``distance`` = position of the query - position of the key.

    The first half of the buckets hold one distance each. The others grow logarithmically up to ``max_distance``. A key
    to the right of its query, which is always masked, is in bucket 0.
    """
    half = buckets // 2
    if distance < half:
        return max(distance, 0)
    return min(buckets - 1, half + int(math.log(distance / half) / math.log(max_distance / half) * (buckets - half)))


def bucket_table(buckets: int = BUCKETS, max_distance: int = MAX_DISTANCE) -> Tensor:
    """``bucket`` of the distances 0 to ``max_distance``, (max_distance + 1,) int64; the last is for all larger ones."""
    return torch.tensor([bucket(distance, buckets, max_distance) for distance in range(max_distance + 1)])


def look_up(table: Tensor, distance: Tensor) -> Tensor:
    """Buckets of distances of any shape, int64."""
    return table[distance.clamp(0, table.numel() - 1)]
