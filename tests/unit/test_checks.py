"""Data that make no sense are refused by name; data of the other direction are not."""

import pytest
import torch
from fairseq.data import ConcatDataset, Dictionary, indexed_dataset
from fairseq.tasks.translation import load_langpair_dataset

from nar_plugins.data import checks
from nar_plugins.data.splits import find_languages


def write(stem, sentences):
    builder = indexed_dataset.make_builder(f"{stem}.bin", impl="mmap", vocab_size=100)
    for sentence in sentences:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(f"{stem}.idx")


def pair(folder, source=((5, 2), (6, 2)), target=((7, 2), (8, 9, 2))):
    for language, sentences in (("en", source), ("de", target)):
        write(folder / f"train.en-de.{language}", sentences)
    return str(folder)


@pytest.mark.parametrize("direction", [("en", "de"), ("de", "en")])
def test_both_directions_of_a_binarised_pair_are_taken(tmp_path, direction):
    checks.check_files(pair(tmp_path), "train", *direction)


@pytest.mark.parametrize("language, side", [("en", "source"), ("de", "target")])
def test_an_absent_side_is_named(tmp_path, language, side):
    folder = pair(tmp_path)
    (tmp_path / f"train.en-de.{language}.idx").unlink()
    with pytest.raises(ValueError, match=f"no {side} file .*train.en-de.{language}.idx"):
        checks.check_files(folder, "train", "en", "de")


def test_sides_of_different_length_are_no_pairs(tmp_path):
    with pytest.raises(ValueError, match="2 en but 1 de sentences"):
        checks.check_files(pair(tmp_path, target=((7, 2),)), "train", "en", "de")


def test_data_cut_short_are_refused(tmp_path):
    folder = pair(tmp_path)
    data = tmp_path / "train.en-de.de.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(ValueError, match="train.en-de.de.idx or .bin is corrupt"):
        checks.check_files(folder, "train", "en", "de")


def dictionary(words=10):
    made = Dictionary()
    for i in range(words):
        made.add_symbol(f"w{i}")
    return made


def test_tokens_beyond_the_dictionary_and_too_many_unknown_ones_are_refused():
    fine = [torch.tensor([4, 13, 2]), torch.tensor([3, 5, 6, 7, 2])]
    checks.check_tokens(fine, dictionary(), "train (en)")
    with pytest.raises(ValueError, match=r"train \(en\) has token 14, its dictionary ends at 13"):
        checks.check_tokens([torch.tensor([14, 2])], dictionary(), "train (en)")
    with pytest.raises(ValueError, match=r"train \(en\): 50% of the tokens are <unk>"):
        checks.check_tokens([torch.tensor([3, 5, 2])], dictionary(), "train (en)")


def test_one_language_is_no_pair(tmp_path):
    with pytest.raises(ValueError, match="both 'en'"):
        find_languages(str(tmp_path), "en", "en")


def test_a_dictionary_without_words_is_refused():
    with pytest.raises(ValueError, match="the target dictionary has no words"):
        checks.check_dictionaries(dictionary(), dictionary(0))


@pytest.mark.parametrize("longest, cut", [(5, 0), (4, 1), (3, 2), (2, 3)])
def test_the_sources_that_fairseq_cuts_are_counted(tmp_path, longest, cut):
    """A source of ``longest`` tokens, its </s> among them, is not cut."""
    sentences = [[5, 6, 7, 8, 2], [5, 6, 7, 2], [5, 6, 2], [5, 2]]
    folder = pair(tmp_path, sentences, sentences)
    words = Dictionary()
    for i in range(20):
        words.add_symbol(f"w{i}")
    data = load_langpair_dataset(
        folder,
        "train",
        "en",
        words,
        "de",
        words,
        combine=False,
        dataset_impl=None,
        upsample_primary=1,
        left_pad_source=False,
        left_pad_target=False,
        max_source_positions=longest,
        max_target_positions=9,
        truncate_source=True,
    )
    assert checks.cut_sources(data.src) == cut == sum(len(data[i]["source"]) < len(sentences[i]) for i in range(4))
    assert checks.cut_sources(ConcatDataset([data.src, data.src])) == 2 * cut
