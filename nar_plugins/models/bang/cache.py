"""What is asked of one pass of decoding with BANG; between passes a ``BlockCache`` keeps the main tokens, never masks.

The interface of the generators is ``BangDecoder.start`` and ``BangDecoder.block``; at inference a row is an ordinary
causal sequence, the accepted tokens and then masks, so there is no n-stream mask here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.models.bang.stream_layout import HIDDEN
from nar_plugins.modules.relative_positions import look_up


class Block(NamedTuple):
    """One pass: m main tokens, then r rows of n masks.

    Attributes:
        slots: (b, m) int64, of the main tokens.
        places: (b, m + r*n) int64, index of every input's position, counted from 0 (a mask: one more than its token).
        buckets: (b, m + r*n, width + r*n) int64: keys are the cache's slots, then the masks.
        width: how many slots of the cache are looked at.
    """

    slots: Tensor
    places: Tensor
    buckets: Tensor
    width: int


def plan_block(
    table: Tensor, lengths: Tensor, new: int, rows: Tensor, masks: int, longest: int, sees_start: bool
) -> Block:
    """What one pass asks of every layer.

    Args:
        table: ``bucket_table()``.
        lengths: (b,) int64, main tokens in the cache. new: m. longest: the largest of ``lengths``.
        rows: (b, r) int64, the index among the new tokens after which a row's masks stand. masks: n.
        sees_start: False: the masks after the start token alone do not see it.
    """
    device, width, row_count = lengths.device, longest + new, rows.size(1)
    slots = lengths.unsqueeze(1) + torch.arange(new, device=device)
    seen = slots.gather(1, rows).repeat_interleave(masks, 1)  # (b, r*n): the last main token that a mask sees
    offset = torch.arange(masks, device=device).repeat(row_count)
    row = torch.arange(row_count, device=device).repeat_interleave(masks)
    places = torch.cat([slots, seen + 1 + offset], 1)
    last = torch.cat([slots, seen if sees_start else seen.masked_fill(seen.eq(0), -1)], 1).unsqueeze(2)

    main = torch.arange(width, device=device)
    to_main = look_up(table, places.unsqueeze(2) - main).masked_fill(main > last, HIDDEN)
    visible = F.pad(
        (row.unsqueeze(1) == row) & (offset.unsqueeze(1) >= offset), (0, 0, new, 0)
    )  # main tokens see no mask
    to_masks = look_up(table, places.unsqueeze(2) - places[:, None, new:]).masked_fill(~visible, HIDDEN)
    return Block(slots, places, torch.cat([to_main, to_masks], 2), width)
