"""Which [MASK] cells a pass computes, and where each stands in the rectangles of the attention.

A row s is a run of masks that see the main tokens 0 to s and the masks before them in the row; its cell (s, j) predicts
target s + j. Column j = 0 is autoregressive, a row from the start of a target or span non-autoregressive, the rest is
the bridge. The states of main tokens and cells stand one after the other in a packed (P, D): what is padding or outside
its span is never computed, except as the tail of a rectangle inside the attention. (BANG, Qi et al. 2021, in the view
by rows.)
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from nar_plugins.modules.packing import collect, queries_of_sentences, spread
from nar_plugins.modules.relative_positions import BUCKETS, look_up

HIDDEN = BUCKETS  # the bucket of a key that its query does not see


class Rectangle(NamedTuple):
    """Rows of one batch that the attention computes together, (B, R, N) cells of which C exist.

    Attributes:
        shape: (B, R, N).
        slots: (C,) int64, where the packed cells stand in the flattened (B * R * N).
        buckets: (B or 1, R, N, T + N) int64, of every key: the main tokens, then (but for the main stream) the row's
            own masks; once where all sentences have the same.
    """

    shape: Tuple[int, int, int]
    slots: Tensor
    buckets: Tensor

    def fill(self, x: Tensor) -> Tensor:
        """Packed (C, H, W) -> (B, H, R, N, W), 0 where there is no cell."""
        sentences, rows, width = self.shape
        full = spread(x, self.slots, sentences * rows * width).unflatten(0, self.shape)
        return full.permute(0, 3, 1, 2, 4).contiguous()

    def pack(self, x: Tensor) -> Tensor:
        """(B, H, R, N, W) -> packed (C, H * W)."""
        return collect(x.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2), self.slots)


class Cells(NamedTuple):
    """The computed cells in the order of their features, each (C,).

    Attributes:
        sentence, start, offset: int64; the cell predicts target[sentence, start + offset].
        blind: bool, True in a row that does not see the start token.
    """

    sentence: Tensor
    start: Tensor
    offset: Tensor
    blind: Tensor


class Layout(NamedTuple):
    """A batch's packed states: M main tokens, then C cells; P = M + C.

    Attributes:
        main: (B, T) bool, the tokens that exist, in whose order they are packed.
        cells: the cells.
        positions: (P,) int64, rows of the table of positions.
        rectangles: the main stream's, then those of the rows.
        memory_slots: (P,) int64, where each stands among its sentence's queries of the encoder, flattened (B * Q).
        memory_width: Q.
    """

    main: Tensor
    cells: Cells
    positions: Tensor
    rectangles: List[Rectangle]
    memory_slots: Tensor
    memory_width: int


def row_sizes(real: Tensor, target_idx: Optional[Tensor] = None, streams: int = 0) -> Tensor:
    """How many cells every row has: as many as the streams, but none beyond its target or span.

    Args:
        real: (B, T) bool, the targets, padded on the right.
        target_idx: (B, T) int64, every target's index inside its span; None: a sentence is one span.
        streams: N; 0: no bound.

    Returns:
        (B, T) int64, 0 on padding.
    """
    length = real.size(1)
    place = torch.arange(length, device=real.device)
    ends = ~real if target_idx is None else ~real | target_idx.eq(0)  # where a row from further left must stop
    stops = place.masked_fill(~ends, length).flip(1).cummin(1).values.flip(1)
    stops = torch.cat([stops[:, 1:], stops.new_full((len(stops), 1), length)], 1)
    sizes = (stops - place).masked_fill(~real, 0)
    return sizes.clamp(max=streams) if streams else sizes


def span_starts(real: Tensor, target_idx: Optional[Tensor] = None) -> Tensor:
    """(B, T) bool, True for the first target of a sentence or, with ``target_idx``, of a span."""
    if target_idx is None:
        first = torch.zeros_like(real)
        first[:, :1] = True
        return first & real
    return target_idx.eq(0) & real


def lay_out(
    real: Tensor, positions: Tensor, sizes: Tensor, lone: bool, table: Tensor, nar_sees_bos: bool = True
) -> Layout:
    """Arrange the rows of a batch.

    Args:
        real: (B, T) bool, the main tokens, padded on the right.
        positions: (B, T) int64, the main tokens' rows of the table of positions; a mask's is one more than that of the
            token beside it.
        sizes: (B, T) int64, the cells of every row, 0 for none; ``row_sizes`` or fewer.
        lone: compute the cell (s, 0) of every row besides.
        table: ``bucket_table()``.
        nar_sees_bos: False: row 0 does not see the start token, as in the release. Its first cell then is another than
            the lone one, which sees it, and there are both.
    """
    batch, length = real.shape
    main_slots = real.flatten().nonzero().squeeze(1)
    everyone = torch.arange(length, device=real.device).expand(batch, -1)
    main_buckets = visible_main(table, positions.unsqueeze(2), positions, everyone, False)
    rectangles = [Rectangle((batch, length, 1), main_slots, once(main_buckets))]
    cells, places = [], [positions[real]]
    for chosen, size, blind in alike(real, sizes, lone, nar_sees_bos):
        if chosen.any():
            rectangle, its_cells, its_positions = arrange(chosen, size, positions, table, blind)
            rectangles.append(rectangle)
            cells.append(its_cells)
            places.append(its_positions)
    if cells:
        joined = Cells(*(torch.cat(parts) for parts in zip(*cells)))
    else:
        none = main_slots[:0]
        joined = Cells(none, none, none, none.bool())
    slots, width = queries_of_sentences(torch.cat([main_slots // length, joined.sentence]), batch)
    return Layout(real, joined, torch.cat(places), rectangles, slots, width)


def alike(real: Tensor, sizes: Tensor, lone: bool, nar_sees_bos: bool) -> List[Tuple[Tensor, Tensor, bool]]:
    """Groups of rows that share a rectangle, being of similar sizes: which, (B, T) bool, their sizes (B, T), and
    whether row 0 is blind among them; the arguments are ``lay_out``'s."""
    groups = []
    ones = real.long()
    if nar_sees_bos:
        sizes = torch.maximum(sizes, ones) if lone else sizes
    else:
        first = torch.zeros_like(real)
        first[:, 0] = True
        if lone:
            groups.append((real & first, ones, False))
            sizes = torch.where(first, sizes, torch.maximum(sizes, ones))
    longest = int(sizes.max())
    bounds = sorted({0, min(1, longest), longest // 2, longest})  # rows of similar sizes share a rectangle
    for low, high in zip(bounds, bounds[1:]):
        groups.append(((sizes > low) & (sizes <= high), sizes, not nar_sees_bos))
    return groups


def arrange(chosen: Tensor, sizes: Tensor, positions: Tensor, table: Tensor, blind: bool):
    """The rectangle of the chosen rows (B, T) bool, its cells and their positions (C,); the rest is ``lay_out``'s."""
    length = chosen.size(1)
    rows = int(chosen.sum(1).max())
    start = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :rows]
    size = sizes.masked_fill(~chosen, 0).gather(1, start)
    offset = torch.arange(int(size.max()), device=chosen.device)
    exists = offset < size.unsqueeze(2)
    beside = (start.unsqueeze(2) + offset).clamp(max=length - 1)
    own = positions.gather(1, beside.flatten(1)).view_as(beside) + 1
    among = look_up(table, own.unsqueeze(3) - own.unsqueeze(2)).masked_fill(offset.unsqueeze(1) < offset, HIDDEN)
    buckets = torch.cat([visible_main(table, own, positions, start, blind), among], 3)
    sentence, row, column = exists.nonzero(as_tuple=True)
    start = start[sentence, row]
    cells = Cells(sentence, start, column, start.eq(0) & blind)
    return Rectangle(tuple(exists.shape), exists.flatten().nonzero().squeeze(1), once(buckets)), cells, own[exists]


def once(buckets: Tensor) -> Tensor:
    """(B, ..) -> (1, ..) where all sentences have the same: they are in memory until the backward pass."""
    return buckets[:1].clone() if bool(buckets.eq(buckets[:1]).all()) else buckets


def visible_main(table: Tensor, queries: Tensor, positions: Tensor, start: Tensor, blind: bool) -> Tensor:
    """Buckets of the main tokens for queries at positions (B, R, N): (B, R, N, T), ``HIDDEN`` after ``start`` (B, R).

    Args:
        positions: (B, T), the main tokens'. blind: the rows from 0 do not even see the start token.
    """
    hidden = torch.arange(positions.size(1), device=start.device) > start.unsqueeze(2)
    if blind:
        hidden = hidden | start.eq(0).unsqueeze(2)
    distance = queries.unsqueeze(3) - positions[:, None, None]
    return look_up(table, distance).masked_fill(hidden.unsqueeze(2), HIDDEN)
