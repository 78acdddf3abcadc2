"""What a decoder keeps of its own inputs between calls: keys and values, in slots that are the inputs' positions."""

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROOM = 32  # slots that there are at first; they double when they are used up


class Slots:
    """Keys and values of every layer, (B, room, ...) each; empty before the first call.

    A rejected token is overwritten by the next call, so nothing is ever rolled back; what lies beyond the accepted ones
    is finite, and for the caller to mask.
    """

    def __init__(self):
        self.layers: List[Tuple[Tensor, Tensor]] = []

    def write(
        self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, width: int, level: bool = False
    ) -> Tuple[Tensor, Tensor]:
        """Put keys and values (B, m, ...) into the slots (B, m); the first ``width`` slots (B, width, ...) of both.

        Args:
            level: all rows have the same slots, the last m of ``width``; a plain copy is several times as fast.
        """
        if layer == len(self.layers):  # the first call: now the type is known
            empty = keys.new_zeros(keys.size(0), max(ROOM, width), *keys.shape[2:])
            self.layers.append((empty, empty.clone()))
        room = self.layers[layer][0].size(1)
        if room < width:
            more = (0, 0) * (keys.dim() - 2) + (0, max(2 * room, width) - room)
            self.layers[layer] = tuple(F.pad(one, more) for one in self.layers[layer])
        here = (slice(None), slice(width - slots.size(1), width))
        if not level:
            here = (torch.arange(slots.size(0), device=slots.device).unsqueeze(1), slots)
        for kept, new in zip(self.layers[layer], (keys, values)):
            kept[here] = new.to(kept.dtype)
        return tuple(kept[:, :width] for kept in self.layers[layer])

    def select(self, rows: Tensor) -> None:
        """Keep these rows, (n,) int64; they may repeat."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
