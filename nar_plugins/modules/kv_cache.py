"""The keys and values of a decoder's inputs, kept from call to call; an input's slot is its position."""

from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_SLOTS = 32  # doubled when they are used up


class KVCache:
    """Keys and values of every layer, (B, slots, ...) each, or both in one tensor; empty before the first call.

    The next call overwrites rejected tokens, so nothing is rolled back. The slots after the accepted tokens hold finite
    numbers; the caller masks them.
    """

    def __init__(self):
        self.layers: List[Tuple[Tensor, ...]] = []
        self.rows: Optional[Tensor] = None  # (B, 1) int64: 0 to B - 1

    def write(
        self, layer: int, positions: Tensor, states: Sequence[Tensor], width: int, aligned: bool = False
    ) -> Tuple[Tensor, ...]:
        """Write the keys and values of new inputs.

        Args:
            positions: (B, m) int64. states: keys and values, (B, m, ...) each.
            width: the number of slots that are returned.
            aligned: the positions are the last m of ``width`` in every sentence; a plain copy is several times as fast.

        Returns:
            ``states`` of the first ``width`` slots, (B, width, ...) each.
        """
        if layer == len(self.layers):  # the first call: now the type is known
            slots = max(INITIAL_SLOTS, width)
            self.layers.append(tuple(each.new_zeros(each.size(0), slots, *each.shape[2:]) for each in states))
        slots = self.layers[layer][0].size(1)
        if slots < width:
            growth = (0, max(2 * slots, width) - slots)
            self.layers[layer] = tuple(
                F.pad(cached, (0, 0) * (cached.dim() - 2) + growth) for cached in self.layers[layer]
            )
        for cached, new in zip(self.layers[layer], states):
            new = new.to(cached.dtype)
            if aligned:
                cached[:, width - positions.size(1) : width] = new
            else:
                cached[self.numbers(positions), positions] = new
        return tuple(cached[:, :width] for cached in self.layers[layer])

    def numbers(self, positions: Tensor) -> Tensor:
        """The numbers (B, 1) of the sentences of positions (B, m)."""
        if self.rows is None or len(self.rows) != len(positions):
            self.rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        return self.rows

    def select(self, sentences: Tensor) -> None:
        """Keep these sentences, (n,) int64; they may repeat."""
        self.layers = [tuple(each[sentences] for each in states) for states in self.layers]
