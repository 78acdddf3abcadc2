"""Spans for BANG's pre-training: where they are, what becomes of their tokens, what the decoder gets, and what it
depends on.
"""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary

from nar_plugins.data.dictionary import BertDictionary, add_mask
from nar_plugins.data.span_masking import SpanMaskedDataset, hidden_tokens, ordinary_words, span_sizes

RATIO = Fraction("0.15")


class Samples(list):
    """What TokenBlockDataset is to the data set: token ids, and their numbers as it keeps them."""

    sizes = property(lambda self: np.array([len(s) for s in self], dtype=np.uint16))


def dictionary(words: int = 2000) -> Dictionary:
    made = Dictionary()
    for i in range(words):
        made.add_symbol(f"w{i}")
    made.pad_to_multiple_(8)
    return made


def dataset(sizes, seed: int = 1, **settings) -> SpanMaskedDataset:
    words = dictionary()
    mask = add_mask(words)
    rng = torch.Generator().manual_seed(5)
    samples = Samples(torch.randint(4, 2004, (size,), generator=rng).int() for size in sizes)
    return SpanMaskedDataset(samples, words, mask, seed, **settings)


def test_a_full_sample_has_eight_spans_of_nine():
    sizes = span_sizes(512, 64, RATIO)
    assert sizes == [*((1 + 64 * i, 64, 9) for i in range(7)), (449, 63, 9)]
    data = dataset([512])
    assert data.tgt_sizes.tolist() == [72] and data[0]["spans"].offset.tolist() == [*range(9)] * 8


@pytest.mark.parametrize("size", [2, 7, 8, 64, 65, 66, 72, 100, 511, 512, 513, 700])
def test_the_sizes_are_the_releases(size):
    """Its loop: blocks from index 1 on, int(0.15 n) tokens of each."""
    expected, at = [], 1
    while at < size:
        n = min(64, size - at)
        expected.append((at, n, int(0.15 * n)))
        at += 64
    assert span_sizes(size, 64, RATIO) == expected
    assert hidden_tokens(np.array([size, size]), 64, RATIO).tolist() == [sum(e[2] for e in expected)] * 2


@pytest.mark.parametrize("size", [8, 64, 65, 100, 512, 700])
def test_one_span_a_block_inside_it_and_never_the_first_token(size):
    data = dataset([size] * 40)
    for sample in (data[i]["spans"] for i in range(40)):
        starts = (sample.offset == 0).nonzero().flatten().tolist() + [len(sample.offset)]
        blocks = [b for b in span_sizes(size, 64, RATIO) if b[2]]
        assert len(starts) == len(blocks) + 1
        for (first, tokens, hidden), a, b in zip(blocks, starts, starts[1:]):
            place = sample.position[a:b].tolist()
            assert place == list(range(place[0], place[0] + hidden))
            assert first >= 1 and first <= place[0] and place[-1] < first + tokens


def test_spans_begin_everywhere_in_a_block():
    data = dataset([65] * 3000)
    starts = [int(data[i]["spans"].position[0]) for i in range(3000)]
    counts = np.bincount(starts, minlength=57)
    assert counts[0] == 0 and len(counts) == 57  # 1 to 56: a span of 9 ends at 64
    assert 20 < counts[1:].min() and counts[1:].max() < 95  # 53.6 expected


def test_the_text_comes_back_from_source_and_target():
    data = dataset([512, 130, 65])
    for i in range(3):
        true, spans = data.samples[i].long(), data[i]["spans"]
        assert spans.source.scatter(0, spans.position, spans.target).equal(true)
        assert spans.previous.equal(true[spans.position - 1]) and spans.target.equal(true[spans.position])
        seen = torch.ones(len(true), dtype=bool)
        seen[spans.position] = False
        assert spans.source[seen].equal(true[seen])


def test_eight_of_ten_become_the_mask_one_stays_and_one_is_a_random_word():
    data = dataset([512] * 200)
    spans = [data[i]["spans"] for i in range(200)]
    source = torch.cat([s.source[s.position] for s in spans])
    target = torch.cat([s.target for s in spans])
    total = len(target)
    masked, kept = source.eq(data.mask), source.eq(target)
    random = source[~masked & ~kept]
    for count, p in ((masked.sum(), 0.8), (kept.sum(), 0.1), (len(random), 0.1)):
        assert abs(count - p * total) < 4 * (total * p * (1 - p)) ** 0.5
    assert random.min() >= 4 and random.max() < 2004  # no special, filling or mask symbol
    assert len(random.unique()) > 0.4 * 2000


def test_a_full_span_has_45_cells():
    """P(s, j) is valid when s and s + j are in one span: 9 + 8 + .. + 1."""
    spans = dataset([512])[0]["spans"]
    span = (spans.offset == 0).cumsum(0)
    cells = sum(int(span[s] == span[t]) for s in range(72) for t in range(s, 72))
    assert cells == 8 * 45 == int((spans.offset + 1).sum())


def test_a_function_of_seed_epoch_and_index_alone():
    sizes = [512, 200, 512, 100]
    one, other = dataset(sizes), dataset(sizes)
    same = [one[i]["spans"] for i in range(4)]
    for i in (3, 0, 2, 1):  # whatever was asked before
        torch.rand(3)
        assert all(a.equal(b) for a, b in zip(other[i]["spans"], same[i]))
    other.set_epoch(2)
    assert all(not other[i]["spans"].source.equal(same[i].source) for i in range(4))
    assert all(not other[i]["spans"].source.equal(dataset(sizes, seed=2)[i]["spans"].source) for i in range(4))
    other.set_epoch(1)
    assert all(other[i]["spans"].source.equal(same[i].source) for i in range(4))
    assert not same[0].position.equal(same[2].position)  # two samples of one size


def test_validation_is_the_same_in_every_epoch():
    data = dataset([512, 300], epochs=False)
    before = [data[i]["spans"] for i in range(2)]
    data.set_epoch(7)
    assert all(a.equal(b) for i in range(2) for a, b in zip(data[i]["spans"], before[i]))
    assert data.ordered_indices().tolist() == [1, 0]  # by size, else as they stand


def test_samples_too_short_to_mask_are_skipped_and_counted(caplog):
    data = dataset([512, 7, 1, 8, 0, 300])
    assert len(data) == 3 and data.sizes.tolist() == [512, 8, 300] and data.tgt_sizes.tolist() == [72, 1, 4 * 9 + 6]
    assert "train: 3 of 6 samples are too short to mask: skipped" in caplog.text
    assert [len(data[i]["spans"].source) for i in range(3)] == [512, 8, 300]


def test_no_sample_long_enough_is_an_error_that_says_how_long():
    with pytest.raises(ValueError) as error:
        dataset([7, 5, 1], name="valid")
    assert str(error.value).startswith(
        "valid: no sample is long enough to mask (the longest has 7 tokens, a span needs 8)"
    )


def test_the_batch():
    data = dataset([200, 512, 8])
    batch = data.collater([data[i] for i in (1, 2, 0)])
    pad = data.pad
    assert batch["id"].tolist() == [1, 2, 0] and batch["nsentences"] == 3
    assert (
        batch["ntokens"] == int(batch["target"].ne(pad).sum()) == 72 + 1 + sum(s[2] for s in span_sizes(200, 64, RATIO))
    )
    assert batch["net_input"]["src_lengths"].tolist() == [512, 8, 200]
    widths = {key: tuple(value.shape) for key, value in batch["net_input"].items()}
    assert widths == {
        "src_tokens": (3, 512),
        "src_lengths": (3,),
        "prev_output_tokens": (3, 72),
        "positions": (3, 72),
        "target_idx": (3, 72),
    }
    for row, i in enumerate((1, 2, 0)):
        spans, own = data[i]["spans"], {k: v[row] for k, v in batch["net_input"].items()}
        n = len(spans.target)
        assert batch["target"][row, :n].equal(spans.target) and batch["target"][row, n:].eq(pad).all()
        assert own["prev_output_tokens"][:n].equal(spans.previous) and own["prev_output_tokens"][n:].eq(pad).all()
        # the position id of the previous token in the source, which has pad + 1 + its index
        assert own["positions"][:n].equal(pad + 1 + (spans.position - 1)) and own["positions"][n:].eq(pad).all()
        assert own["target_idx"][:n].equal(spans.offset) and own["target_idx"][n:].eq(0).all()
        assert own["src_tokens"][len(spans.source) :].eq(pad).all()
    assert all(v.dtype == torch.int64 for v in batch["net_input"].values())


def test_shuffled_in_training_as_numpy_is_seeded():
    data = dataset([100] * 50 + [200] * 50)
    orders = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        orders.append(data.ordered_indices().tolist())
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(100))
    assert all(i < 50 for i in orders[0][:50])


def test_samples_beyond_the_positions_are_filtered_and_none_left_is_an_error():
    data = dataset([100, 300, 500])
    kept, ignored = data.filter_indices_by_size(np.arange(3), (512, 300))
    assert kept.tolist() == [0, 1] and ignored == [2]
    with pytest.raises(ValueError, match="no sample fits 64 tokens, the shortest has 100"):
        data.filter_indices_by_size(np.arange(3), 64)


def test_random_words_of_berts_vocabulary_are_999_and_up():
    words = BertDictionary()
    unused = [f"[unused{i}]" for i in range(99)]
    symbols = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(99, 994))]
    for symbol in [*symbols, "!", "[", "]", "the", "##s"]:
        words.add_symbol(symbol)
    assert words.indices["!"] == 999
    assert ordinary_words(words, add_mask(words)).tolist() == [999, 1000, 1001, 1002, 1003]


def test_a_custom_block_and_ratio():
    data = dataset([101], block=10, ratio="0.3")
    assert data.tgt_sizes.tolist() == [30] and data[0]["spans"].offset.tolist() == [0, 1, 2] * 10


def test_no_words_to_replace_with_is_an_error():
    with pytest.raises(ValueError, match="no words"):
        ordinary_words(SimpleNamespace(nspecial=4, symbols=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), 4)
