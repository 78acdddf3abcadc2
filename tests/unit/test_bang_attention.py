"""BANG's rows of masks: who sees whom, and that the packed rows are the dense masked streams (spec E.3, groups 1, 2 and
8).
"""

import pytest
import torch
from bang_twin import dense_attention, stream_positions, visible

from nar_plugins.models.bang.attention import NStreamAttention
from nar_plugins.models.bang.row_attention import row_attention
from nar_plugins.models.bang.stream_layout import HIDDEN, build_layout, mask_counts
from nar_plugins.modules.packing import collect, spread
from nar_plugins.modules.relative_positions import bucket, bucket_table, look_up

TABLE = bucket_table()
SPEC = """
M0    |   1... |   ....  |   ....  |   ....  |   ....
M1    |   11.. |   ....  |   ....  |   ....  |   ....
M2    |   111. |   ....  |   ....  |   ....  |   ....
M3    |   1111 |   ....  |   ....  |   ....  |   ....
S1.0  |   1... |   1...  |   ....  |   ....  |   ....
S1.1  |   11.. |   .1..  |   ....  |   ....  |   ....
S1.2  |   111. |   ..1.  |   ....  |   ....  |   ....
S1.3  |   1111 |   ...1  |   ....  |   ....  |   ....
S2.1  |   1... |   1...  |   .1..  |   ....  |   ....
S2.2  |   11.. |   .1..  |   ..1.  |   ....  |   ....
S2.3  |   111. |   ..1.  |   ...1  |   ....  |   ....
S3.2  |   1... |   1...  |   .1..  |   ..1.  |   ....
S3.3  |   11.. |   .1..  |   ..1.  |   ...1  |   ....
S4.3  |   1... |   1...  |   .1..  |   ..1.  |   ...1
"""


def layout(lengths, streams, with_ar=False, positions=None, target_idx=None, counts=None, **kwargs):
    width = max(lengths)
    real = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    positions = (torch.arange(width) + 2).expand_as(real) if positions is None else positions
    counts = mask_counts(real, target_idx, streams) if counts is None else counts
    return build_layout(real, positions, counts, with_ar, TABLE, **kwargs)


def seen_by_the_code(length, streams):
    """What the layout's buckets let through, as ``visible`` writes it; masks that do not exist see nothing."""
    one = layout([length], streams)
    seen = torch.zeros(1 + streams, length, 1 + streams, length, dtype=torch.bool)
    main, *groups = one.groups
    seen[0, :, 0] = main.buckets[0, :, 0].ne(HIDDEN)
    at = 0
    for group in groups:
        count = group.slots.numel()
        s, j = one.masks.start[at : at + count], one.masks.offset[at : at + count]
        keys = group.buckets.flatten(0, 2)[group.slots].ne(HIDDEN)  # (C, T + N)
        for i in range(count):
            start, offset = int(s[i]), int(j[i])
            seen[offset + 1, start + offset, 0] = keys[i, :length]
            for other in keys[i, length:].nonzero().flatten().tolist():
                seen[offset + 1, start + offset, other + 1, start + other] = True
        at += count
    assert at == one.masks.start.numel() == streams * length - streams * (streams - 1) // 2
    return seen.flatten(2).flatten(0, 1)


@pytest.mark.parametrize("length", range(1, 7))
def test_the_mask_is_the_definition(length):
    for streams in range(1, length + 1):
        assert seen_by_the_code(length, streams).equal(visible(length, streams)), streams


@pytest.mark.parametrize("made", [visible, seen_by_the_code])
def test_the_mask_of_four_is_the_table(made):
    seen = made(4, 4)
    for line in SPEC.strip().splitlines():
        name, *streams = line.replace(" ", "").split("|")
        query = int(name[1]) if name[0] == "M" else 4 * int(name[1]) + int(name[3])
        assert "".join(".1"[int(one)] for one in seen[query]) == "".join(streams), name


def test_buckets_are_those_of_the_table():
    starts = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    expected = [sum(start <= distance for start in starts) - 1 for distance in range(201)]
    assert [bucket(distance) for distance in range(201)] == expected
    assert look_up(TABLE, torch.arange(201)).tolist() == expected
    assert expected[:16] == list(range(16)) and set(expected[113:]) == {31}


def test_mask_counts():
    real = torch.arange(7) < torch.tensor([[7], [4], [0]])
    assert mask_counts(real).tolist() == [[7, 6, 5, 4, 3, 2, 1], [4, 3, 2, 1, 0, 0, 0], [0] * 7]
    assert mask_counts(real, streams=3).tolist() == [[3, 3, 3, 3, 3, 2, 1], [3, 3, 2, 1, 0, 0, 0], [0] * 7]
    spans = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 0], [0] * 7])
    assert mask_counts(real, spans).tolist() == [[3, 2, 1, 2, 1, 2, 1], [2, 1, 2, 1, 0, 0, 0], [0] * 7]
    nine = torch.arange(9).repeat(1, 8)
    assert int(mask_counts(torch.ones(1, 72, dtype=torch.bool), nine, 9).sum()) == 8 * 45


# -- the three ways to compute it
# ------------------------------------------------------------------------------------------


def attention():
    torch.manual_seed(2)
    one = NStreamAttention(16, 2).double()
    for weight in one.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return one


def packed(x, one, length):
    """x (B, 1 + N, T, D) -> the layout's packed states (P, D)."""
    masks = one.masks
    return torch.cat([x[:, 0][one.main], x[masks.sentence, masks.offset + 1, masks.start + masks.offset]])


def dense(att, x, length, streams):
    seen = visible(length, streams)
    seen = seen | torch.eye(len(seen), dtype=torch.bool)  # masks that do not exist need something to look at
    y = dense_attention(att, x.flatten(1, 2), stream_positions(length, streams), seen)
    return y.view_as(x)


def stream_by_stream(att, x, length, streams):
    """A loop over streams: stream k's queries on the main stream and on one mask of each stream before it."""
    results, seen = [], visible(length, streams).view(1 + streams, length, -1)
    positions = stream_positions(length, streams).view(1 + streams, length)
    for k in range(1 + streams):
        keys = x[:, : k + 1].flatten(1, 2)
        mask = seen[k, :, : keys.size(1)]
        query = slice(k * length, (k + 1) * length)
        whole = torch.eye(keys.size(1), dtype=torch.bool)
        whole[query] = mask | (~mask.any(1, keepdim=True) & whole[query])
        results.append(dense_attention(att, keys, positions[: k + 1].flatten(), whole)[:, query])
    return torch.stack(results, 1)


@pytest.mark.parametrize("length, streams", [(1, 1), (5, 1), (5, 2), (6, 4), (7, 7)])
def test_packed_rows_are_the_dense_streams_and_the_loop_over_streams(length, streams):
    att, one = attention(), layout([length] * 3, streams)
    torch.manual_seed(3)
    x = torch.randn(3, 1 + streams, length, 16, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(len(packed(x, one, length)), 16, dtype=torch.float64)
    results = {}
    for name in ("packed", "dense", "loop"):
        if name == "packed":
            y = att(packed(x, one, length), one)
        else:
            y = packed((dense if name == "dense" else stream_by_stream)(att, x, length, streams), one, length)
        results[name] = (y, *torch.autograd.grad(y, [x, *att.parameters()], gradient))
    for name in ("dense", "loop"):
        for a, b in zip(results["packed"], results[name]):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    only = att(packed(x, one, length), one, masks_only=True)
    torch.testing.assert_close(only, results["packed"][0][3 * length :], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_ar", [False, True])
def test_some_rows_are_those_rows_of_all(with_ar):
    att, lengths = attention(), [7, 3, 5]
    every = layout(lengths, 0)
    chosen = mask_counts(every.main) * torch.tensor(
        [[1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0]]
    )
    some = layout(lengths, 0, with_ar, counts=chosen)
    torch.manual_seed(3)
    x = torch.randn(3, 8, 7, 16, dtype=torch.float64)
    whole, part = att(packed(x, every, 7), every)[15:], att(packed(x, some, 7), some)[15:]
    where = {key: i for i, key in enumerate(zip(*(part.tolist() for part in every.masks[:3])))}
    keys = [*zip(*(part.tolist() for part in some.masks[:3]))]
    assert len(set(keys)) == len(keys) == int(chosen.clamp(min=int(with_ar)).masked_fill(~every.main, 0).sum())
    torch.testing.assert_close(part, whole[[where[key] for key in keys]], rtol=1e-10, atol=1e-10)


def test_nothing_is_computed_for_padding():
    one = layout([7, 3, 5], 4)
    assert len(one.positions) == 15 + int(mask_counts(one.main, streams=4).sum())
    assert one.memory_slots.unique().numel() == len(one.positions) and one.memory_width == 7 + 4 * 4 + 3 + 2 + 1


@pytest.mark.parametrize("lengths", [[0, 0], [1, 0]])
def test_a_batch_with_hardly_a_mask(lengths):
    one, att = layout([3] * len(lengths), 0, counts=torch.zeros(2, 3, dtype=torch.long)), attention()
    x = torch.randn(6, 16, dtype=torch.float64)
    assert att(x, one).shape == (6, 16) and att(x, one, masks_only=True).shape == (0, 16)


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_written_out_gradients(with_masks, dropout):
    torch.manual_seed(4)
    length, width = 3, 2
    buckets = torch.randint(6, (1, 2, width, length + with_masks * width))
    buckets[0, 0, 0, 1:] = 5

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    queries, keys, values = leaf(2, 2, 2, width, 4), leaf(2, 2, length, 4), leaf(2, 2, length, 4)
    bias, row_masks = leaf(2, 2, 2, width, 5), [leaf(2, 2, 2, width, 4) if with_masks else None for _ in range(2)]

    def run(queries, bias, keys, values, mask_keys, mask_values):
        torch.manual_seed(9)  # the same weights are dropped every time
        hidden = torch.nn.functional.pad(bias, (0, 1), value=-float("inf"))
        return row_attention(queries, hidden, keys, values, mask_keys, mask_values, buckets, dropout)

    assert torch.autograd.gradcheck(run, (queries, bias, keys, values, *row_masks))
    kept = [
        run(
            queries,
            bias,
            keys,
            torch.ones_like(values),
            row_masks[0],
            torch.ones_like(row_masks[1]) if with_masks else None,
        )
    ]
    assert dropout or kept[0].allclose(torch.ones(()).double())  # the weights add up to 1


def test_dropped_weights_are_scaled_up():
    torch.manual_seed(4)
    queries, keys = torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 20000, 2)
    buckets = torch.zeros(1, 1, 1, 20000, dtype=torch.long)
    found = row_attention(queries, torch.zeros(1, 1, 1, 1, 2), keys, torch.ones_like(keys), None, None, buckets, 0.3)
    assert 0.97 < float(found[0, 0, 0, 0, 0]) < 1.03


def test_packing_and_unpacking():
    slots, x = torch.tensor([4, 0, 3]), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    full = spread(x, slots, 6)
    assert full[slots].equal(x) and full[[1, 2, 5]].eq(0).all() and collect(full, slots).equal(x)
    assert torch.autograd.gradcheck(lambda x: spread(x, slots, 6), x)
    assert torch.autograd.gradcheck(lambda x: collect(x, slots[:2] - slots[:2] // 4 * 2), x)
