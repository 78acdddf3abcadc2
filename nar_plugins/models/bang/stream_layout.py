"""Which [MASK]s a pass computes, and how the attention groups them.

Mask (s, j) is the j-th mask, from 0, in the row of main token s. It sees the main tokens 0 to s and the masks before it
in its row, and it predicts target s + j. In the paper's terms it is position s + j of predicting stream j + 1. Stream 1
(j = 0) is autoregressive (AR). The row from the start of a target or span is non-autoregressive (NAR). All other masks
are the bridge. (BANG, Qi et al. 2021, n-stream self-attention.)

Main tokens and masks are packed one after the other in (P, D). Padding and what lies outside a span are not computed,
except as the tail of a group inside the attention.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from nar_plugins.modules.packing import collect, queries_of_sentences, spread
from nar_plugins.modules.relative_positions import BUCKETS, look_up

HIDDEN = BUCKETS  # the bucket of a key that its query does not see


class RowGroup(NamedTuple):
    """Rows that the attention computes together: (B, R, N) places, of which C hold a state.

    Attributes:
        shape: (B, R, N).
        slots: (C,) int64, the places of the packed states in the flattened (B * R * N).
        buckets: (B or 1, R, N, T + N) int64, the bucket of every key. The keys are the main tokens, then the masks of
            the row; in the group of the main stream, (.., T), the main tokens only. The batch dimension is 1 where all
            sentences have the same buckets.
    """

    shape: Tuple[int, int, int]
    slots: Tensor
    buckets: Tensor

    def unpack(self, x: Tensor) -> Tensor:
        """Packed (C, H, W) -> (B, H, R, N, W), 0 at empty places."""
        sentences, rows, width = self.shape
        full = spread(x, self.slots, sentences * rows * width).unflatten(0, self.shape)
        return full.permute(0, 3, 1, 2, 4).contiguous()

    def pack(self, x: Tensor) -> Tensor:
        """(B, H, R, N, W) -> packed (C, H * W)."""
        return collect(x.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2), self.slots)


class MaskPositions(NamedTuple):
    """The computed masks in the order of their features, each attribute (C,).

    Attributes:
        sentence, start, offset: int64; the mask predicts target[sentence, start + offset].
        sees_no_bos: bool, True in a row that does not see the start token.
    """

    sentence: Tensor
    start: Tensor
    offset: Tensor
    sees_no_bos: Tensor


class StreamLayout(NamedTuple):
    """The packed states of a batch: M main tokens, then C masks; P = M + C.

    Attributes:
        main: (B, T) bool, the main tokens that exist; they are packed in this order.
        masks: the computed masks.
        positions: (P,) int64, the position id of every state: its index in the table of positions.
        groups: the main stream's, then those of the masks.
        memory_slots: (P,) int64, the place of each state among its sentence's cross-attention queries, flattened
            (B * Q).
        memory_width: Q.
    """

    main: Tensor
    masks: MaskPositions
    positions: Tensor
    groups: List[RowGroup]
    memory_slots: Tensor
    memory_width: int


def mask_counts(real: Tensor, target_idx: Optional[Tensor] = None, streams: int = 0) -> Tensor:
    """The number of masks of every row: one for each stream, but none beyond the end of the target or span.

    Args:
        real: (B, T) bool, the targets, padded on the right.
        target_idx: (B, T) int64, the index of every target inside its span; None: a sentence is one span.
        streams: N; 0: no limit.

    Returns:
        (B, T) int64, 0 on padding.
    """
    length = real.size(1)
    index = torch.arange(length, device=real.device)
    ends = ~real if target_idx is None else ~real | target_idx.eq(0)  # where a row from further left ends
    next_end = index.masked_fill(~ends, length).flip(1).cummin(1).values.flip(1)
    next_end = torch.cat([next_end[:, 1:], next_end.new_full((len(next_end), 1), length)], 1)
    counts = (next_end - index).masked_fill(~real, 0)
    return counts.clamp(max=streams) if streams else counts


def span_starts(real: Tensor, target_idx: Optional[Tensor] = None) -> Tensor:
    """(B, T) bool, True for the first target of a sentence or, with ``target_idx``, of a span."""
    if target_idx is None:
        first = torch.zeros_like(real)
        first[:, :1] = True
        return first & real
    return target_idx.eq(0) & real


def build_layout(
    real: Tensor, positions: Tensor, counts: Tensor, with_ar: bool, table: Tensor, nar_sees_bos: bool = True
) -> StreamLayout:
    """The layout of a batch.

    Args:
        real: (B, T) bool, the main tokens, padded on the right.
        positions: (B, T) int64, the position ids of the main tokens; a mask has that of the token before it plus 1.
        counts: (B, T) int64, the masks of every row, 0 for none; ``mask_counts`` or fewer.
        with_ar: also compute the AR mask (s, 0) of every row, which always sees the start token.
        table: ``bucket_table()``.
        nar_sees_bos: False: row 0 does not see the start token, as in the release. Its first mask then differs from the
            AR mask, and both are computed.
    """
    batch, length = real.shape
    main_slots = real.flatten().nonzero().squeeze(1)
    all_starts = torch.arange(length, device=real.device).expand(batch, -1)
    buckets = main_buckets(table, positions.unsqueeze(2), positions, all_starts, False)
    groups = [RowGroup((batch, length, 1), main_slots, shared_over_batch(buckets))]
    masks, position_ids = [], [positions[real]]
    for selected, group_counts, sees_no_bos in group_by_length(real, counts, with_ar, nar_sees_bos):
        if selected.any():
            group, group_masks, group_positions = build_group(selected, group_counts, positions, table, sees_no_bos)
            groups.append(group)
            masks.append(group_masks)
            position_ids.append(group_positions)
    if masks:
        joined = MaskPositions(*(torch.cat(parts) for parts in zip(*masks)))
    else:
        empty = main_slots[:0]
        joined = MaskPositions(empty, empty, empty, empty.bool())
    slots, width = queries_of_sentences(torch.cat([main_slots // length, joined.sentence]), batch)
    return StreamLayout(real, joined, torch.cat(position_ids), groups, slots, width)


def group_by_length(
    real: Tensor, counts: Tensor, with_ar: bool, nar_sees_bos: bool
) -> List[Tuple[Tensor, Tensor, bool]]:
    """Groups of rows of similar length, which cost little padding.

    Args:
        real, counts, with_ar, nar_sees_bos: as in ``build_layout``.

    Returns:
        for every group: its rows (B, T) bool, the masks of every row (B, T) int64, and whether row 0, if it is in the
        group, does not see the start token.
    """
    groups = []
    one_each = real.long()
    if nar_sees_bos:
        counts = torch.maximum(counts, one_each) if with_ar else counts
    else:
        first = torch.zeros_like(real)
        first[:, 0] = True
        if with_ar:
            groups.append((real & first, one_each, False))
            counts = torch.where(first, counts, torch.maximum(counts, one_each))
    longest = int(counts.max())
    bounds = sorted({0, min(1, longest), longest // 2, longest})
    for low, high in zip(bounds, bounds[1:]):
        groups.append(((counts > low) & (counts <= high), counts, not nar_sees_bos))
    return groups


def build_group(
    selected: Tensor, counts: Tensor, positions: Tensor, table: Tensor, sees_no_bos: bool
) -> Tuple[RowGroup, MaskPositions, Tensor]:
    """The group of the selected rows (B, T) bool, its masks, and their position ids (C,).

    The other arguments are those of ``build_layout`` and ``group_by_length``.
    """
    length = selected.size(1)
    rows = int(selected.sum(1).max())
    start = selected.int().argsort(dim=1, descending=True, stable=True)[:, :rows]
    count = counts.masked_fill(~selected, 0).gather(1, start)
    offset = torch.arange(int(count.max()), device=selected.device)
    exists = offset < count.unsqueeze(2)
    previous = (start.unsqueeze(2) + offset).clamp(max=length - 1)  # the main token before each mask's target
    ids = positions.gather(1, previous.flatten(1)).view_as(previous) + 1
    to_main = main_buckets(table, ids, positions, start, sees_no_bos)
    to_masks = look_up(table, ids.unsqueeze(3) - ids.unsqueeze(2)).masked_fill(offset.unsqueeze(1) < offset, HIDDEN)
    buckets = torch.cat([to_main, to_masks], 3)
    sentence, row, column = exists.nonzero(as_tuple=True)
    start = start[sentence, row]
    masks = MaskPositions(sentence, start, column, start.eq(0) & sees_no_bos)
    slots = exists.flatten().nonzero().squeeze(1)
    return RowGroup(tuple(exists.shape), slots, shared_over_batch(buckets)), masks, ids[exists]


def shared_over_batch(buckets: Tensor) -> Tensor:
    """(B, ..) -> (1, ..) where all sentences have the same buckets: they stay in memory until the backward pass."""
    return buckets[:1].clone() if bool(buckets.eq(buckets[:1]).all()) else buckets


def main_buckets(table: Tensor, queries: Tensor, positions: Tensor, start: Tensor, sees_no_bos: bool) -> Tensor:
    """The buckets (B, R, N, T) of the main tokens as keys; ``HIDDEN`` after ``start``.

    Args:
        queries: (B, R, N) int64, the position ids of the queries. positions: (B, T) int64, those of the main tokens.
        start: (B, R) int64, the last main token that each row sees.
        sees_no_bos: row 0 does not see the start token either.
    """
    hidden = torch.arange(positions.size(1), device=start.device) > start.unsqueeze(2)
    if sees_no_bos:
        hidden = hidden | start.eq(0).unsqueeze(2)
    distance = queries.unsqueeze(3) - positions[:, None, None]
    return look_up(table, distance).masked_fill(hidden.unsqueeze(2), HIDDEN)
