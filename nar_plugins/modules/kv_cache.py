"""The keys and values of a decoder's inputs, kept from call to call; an input's slot is its position."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_SLOTS = 32  # doubled when they are used up


class KVCache:
    """Keys and values of every layer, (B, slots, ...) each; empty before the first call.

    The next call overwrites rejected tokens, so nothing is rolled back. The slots after the accepted tokens hold finite
    numbers; the caller masks them.
    """

    def __init__(self):
        self.layers: List[Tuple[Tensor, Tensor]] = []

    def write(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor, width: int, aligned: bool = False
    ) -> Tuple[Tensor, Tensor]:
        """Write the keys and values of new inputs.

        Args:
            positions: (B, m) int64. keys, values: (B, m, ...).
            width: the number of slots that are returned.
            aligned: the positions are the last m of ``width`` in every sentence; a plain copy is several times as fast.

        Returns:
            keys and values of the first ``width`` slots, (B, width, ...) each.
        """
        if layer == len(self.layers):  # the first call: now the type is known
            empty = keys.new_zeros(keys.size(0), max(INITIAL_SLOTS, width), *keys.shape[2:])
            self.layers.append((empty, empty.clone()))
        slots = self.layers[layer][0].size(1)
        if slots < width:
            growth = (0, 0) * (keys.dim() - 2) + (0, max(2 * slots, width) - slots)
            self.layers[layer] = tuple(F.pad(cached, growth) for cached in self.layers[layer])
        if aligned:
            index = (slice(None), slice(width - positions.size(1), width))
        else:
            index = (torch.arange(positions.size(0), device=positions.device).unsqueeze(1), positions)
        for cached, new in zip(self.layers[layer], (keys, values)):
            cached[index] = new.to(cached.dtype)
        return tuple(cached[:, :width] for cached in self.layers[layer])

    def select(self, sentences: Tensor) -> None:
        """Keep these sentences, (n,) int64; they may repeat."""
        self.layers = [(keys[sentences], values[sentences]) for keys, values in self.layers]
