"""The positions and buckets of one decoding step. Between steps a ``BlockCache`` keeps main tokens, never masks.

Generators call ``BangDecoder.start`` and ``BangDecoder.decode_step``. At inference a row is an ordinary causal
sequence, the accepted tokens and then masks, so no n-stream mask is needed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.models.bang.stream_layout import HIDDEN
from nar_plugins.modules.relative_positions import look_up


class DecodingStep(NamedTuple):
    """One decoder pass over m new main tokens, then r rows of n masks.

    Attributes:
        slots: (b, m) int64, the cache slots of the main tokens.
        indices: (b, m + r*n) int64, the index of every input in the target, from 0 (of a mask: that of the token before
            it plus 1).
        buckets: (b, m + r*n, width + r*n) int64; the keys are the cache's slots, then the masks.
        width: the number of the cache's slots that are read.
    """

    slots: Tensor
    indices: Tensor
    buckets: Tensor
    width: int


def plan_step(
    table: Tensor, lengths: Tensor, new: int, row_starts: Tensor, masks: int, longest: int, sees_bos: bool
) -> DecodingStep:
    """The positions and visibility of one step, the same in every layer.

    Args:
        table: ``bucket_table()``.
        lengths: (b,) int64, main tokens in the cache. new: m. longest: the largest of ``lengths``.
        row_starts: (b, r) int64, the index among the new tokens after which the masks of a row stand. masks: n.
        sees_bos: False: the masks directly after the start token do not see it.
    """
    device, width, rows = lengths.device, longest + new, row_starts.size(1)
    slots = lengths.unsqueeze(1) + torch.arange(new, device=device)
    last_main = slots.gather(1, row_starts).repeat_interleave(masks, 1)  # (b, r*n): the last one that a mask sees
    offset = torch.arange(masks, device=device).repeat(rows)
    row = torch.arange(rows, device=device).repeat_interleave(masks)
    indices = torch.cat([slots, last_main + 1 + offset], 1)
    if not sees_bos:
        last_main = last_main.masked_fill(last_main.eq(0), -1)
    last_seen = torch.cat([slots, last_main], 1).unsqueeze(2)

    main = torch.arange(width, device=device)
    to_main = look_up(table, indices.unsqueeze(2) - main).masked_fill(main > last_seen, HIDDEN)
    visible = (row.unsqueeze(1) == row) & (offset.unsqueeze(1) >= offset)
    visible = F.pad(visible, (0, 0, new, 0))  # main tokens see no mask
    to_masks = look_up(table, indices.unsqueeze(2) - indices[:, None, new:]).masked_fill(~visible, HIDDEN)
    return DecodingStep(slots, indices, torch.cat([to_main, to_masks], 2), width)
