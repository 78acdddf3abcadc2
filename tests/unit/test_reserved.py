"""Reserved symbols as words of a text: counted, and unknown words to a parallel model."""

import logging

import numpy as np
import pytest
import torch
from fairseq.data import BucketPadLengthDataset, ConcatDataset, bucket_pad_length_dataset, data_utils, indexed_dataset
from tiny import dictionary

from nar_plugins.corpora.text import load_pair
from nar_plugins.data import reserved
from nar_plugins.data.dictionary import MASK, add_mask, knows_mask, load_dictionary, unreadable_symbols

PAD, EOS, UNK, HELD = 1, 2, 3, 9
TEXT = [[5, 6, 2], [5, 1, 1, 6, 2], [1, 9, 2], [5, 2, 6, 2], [0, 5, 2], [2], [7, 8, 9, 2]]
FOUND = {0: 1, PAD: 2, EOS: 1, HELD: 2}


def write(stem, sentences=TEXT, impl="mmap", vocabulary=100):
    builder = indexed_dataset.make_builder(f"{stem}.bin", impl=impl, vocab_size=vocabulary)
    for sentence in sentences:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(f"{stem}.idx")
    return data_utils.load_indexed_dataset(str(stem), None, impl)


def held():
    """w0 to w4 are 4 to 8, <mask> of the file 9, w5 10."""
    made = dictionary(5)
    made.add_symbol(MASK)
    made.add_symbol("w5")
    return made


def said(caplog) -> list:
    return [record.getMessage() for record in caplog.records if record.name == reserved.__name__]


def read(dataset) -> list:
    return [dataset[i].tolist() for i in range(len(dataset))]


def unknown(sentences) -> list:
    return [[UNK if token in (PAD, HELD) else token for token in sentence] for sentence in sentences]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("impl, vocabulary", [("mmap", 100), ("mmap", 100_000), ("lazy", 100)])
def test_symbols_inside_sentences_are_counted_by_sentence(tmp_path, monkeypatch, impl, vocabulary, chunk):
    monkeypatch.setattr(reserved, "CHUNK", chunk)
    data = write(tmp_path / "text", impl=impl, vocabulary=vocabulary)
    found = reserved.count(data, [0, PAD, EOS, HELD, 70_000], EOS)
    assert found == reserved.Counts(FOUND, 7, 7)
    assert reserved.count(ConcatDataset([data, data], [3, 1]), [PAD], EOS) == reserved.Counts({PAD: 4}, 14, 14)


def test_a_parallel_model_reads_unknown_words_and_what_is_kept_is_said(tmp_path, caplog):
    data = write(tmp_path / "text")
    with caplog.at_level(logging.INFO):
        assert read(reserved.replace_reserved(data, held(), "train (en)", True)) == unknown(TEXT)
        assert reserved.replace_reserved(data, held(), "train (en)", False) is data and read(data) == TEXT
    assert said(caplog) == [
        "train (en): reserved symbols as words of the text: <s> in 1 of 7 sentences (kept), <pad> in 2 of 7 sentences "
        f"({verb}), </s> in 1 of 7 sentences (kept), <mask> in 2 of 7 sentences ({verb})"
        for verb in ("read as <unk>", "kept")
    ]


def test_clean_text_is_left_alone_and_nothing_is_said(tmp_path, caplog):
    data = write(tmp_path / "text", [[5, 2], [2], [6, 7, 2]])
    with caplog.at_level(logging.INFO):
        assert reserved.replace_reserved(data, held(), "train", True) is data
    assert not said(caplog)


def test_what_is_too_much_to_look_at_is_read_right_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reserved, "MAX_TOKENS", 9)  # the first two sentences, and a token
    data = write(tmp_path / "text")
    assert read(reserved.replace_reserved(data, held(), "train", True)) == unknown(TEXT)
    assert "<pad> in 1 of the first 2 sentences (read as <unk>)" in caplog.text


def test_the_padding_of_buckets_stays_padding(tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_pad_length_dataset, "get_buckets", lambda sizes, number: np.array([5]))
    data = write(tmp_path / "text")
    buckets = BucketPadLengthDataset(data, sizes=np.array(data.sizes), num_buckets=1, pad_idx=PAD, left_pad=False)
    assert read(reserved.replace_reserved(buckets, held(), "train", True)) == [
        sentence + [PAD] * (5 - len(sentence)) for sentence in unknown(TEXT)
    ]


# -- the dictionary
# ------------------------------------------------------------------------------------------------------


def test_an_appended_mask_stands_for_no_word_of_a_text():
    words = dictionary(5)
    assert add_mask(words) == add_mask(words) == 9 and len(words) == 10 and words[9] == MASK
    assert words.encode_line(f"w0 {MASK} w1", add_if_not_exist=False).tolist() == [4, UNK, 5, EOS]
    assert words.string([4, 9, 5]) == f"w0 {MASK} w1"
    assert (
        not knows_mask(words) and unreadable_symbols(words) == (PAD, 9) and unreadable_symbols(words, 4) == (PAD, 4, 9)
    )


def test_a_mask_of_the_file_is_a_word_of_the_text():
    words = held()
    assert add_mask(words) == HELD and knows_mask(words)
    assert words.encode_line(f"w0 {MASK}", add_if_not_exist=False).tolist() == [4, HELD, EOS]


def test_a_dictionary_of_berts_has_its_own_padding_and_mask(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"{name} 1\n" for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "[MASK]")))
    words = load_dictionary(str(path))
    assert unreadable_symbols(words) == (0, 5) and not knows_mask(words)
    data = write(tmp_path / "text", [[4, 5, 3, 4, 0, 3]])  # a [MASK] [SEP] a [PAD] [SEP]
    assert read(reserved.replace_reserved(data, words, "train", True)) == [[4, 1, 3, 4, 1, 3]]


# -- nar-align
# -------------------------------------------------------------------------------------------------------------


def test_the_aligner_sees_what_the_model_will_see(tmp_path):
    for language in ("en", "de"):
        write(tmp_path / f"train.en-de.{language}")
        held().save(str(tmp_path / f"dict.{language}.txt"))
    for text in load_pair(str(tmp_path), "train", "en", "de", str(tmp_path)):
        assert text.tokens.tolist() == [token for sentence in unknown(TEXT) for token in sentence[:-1]]
