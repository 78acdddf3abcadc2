"""Fertilities are written whole, read back, checked against the pairs, and follow them into every batch."""

import os

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset, ListDataset

from nar_plugins.data import fertility
from nar_plugins.data.fertility import FertilityDataset, fertility_path, read_fertilities, write_fertilities
from nar_plugins.tasks.translation import NarTranslationConfig, NarTranslationTask

SIZES = np.array([3, 1, 4, 2, 6, 3])
VALUES = np.array([2, 0, 1, 5, 0, 12, 100, 1, 0, 1, *(0, 0, 0, 0, 0, 1), 1, 1, 1])
TARGETS = np.add.reduceat(VALUES, SIZES.cumsum() - SIZES)


def dictionary() -> Dictionary:
    made = Dictionary()
    for i in range(10):
        made.add_symbol(f"w{i}")
    return made


def pairs(words: Dictionary, source=SIZES, target=TARGETS, **kwargs) -> LanguagePairDataset:
    """Pairs of these lengths, ``</s>`` included."""
    sides = [ListDataset([torch.tensor([4] * (n - 1) + [2]) for n in sizes], sizes) for sizes in (source, target)]
    return LanguagePairDataset(
        sides[0], source, words, sides[1], target, words, left_pad_source=False, left_pad_target=False, **kwargs
    )


@pytest.fixture
def path(tmp_path):
    made = fertility_path(tmp_path, "train", "en", "de")
    write_fertilities(made, VALUES, SIZES)
    return made


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_what_is_written_is_read(tmp_path, monkeypatch, block):
    monkeypatch.setattr(fertility, "CHUNK", block)
    path = fertility_path(tmp_path, "train", "en", "de")
    write_fertilities(path, VALUES, SIZES)
    assert path.name == "train.en-de.fert"
    assert path.read_text() == "2 0 1\n5\n0 12 100 1\n0 1\n0 0 0 0 0 1\n1 1 1\n"
    values, offsets = read_fertilities(path)
    assert values.tolist() == VALUES.tolist() and offsets.tolist() == [0, *SIZES.cumsum()]
    path.write_bytes(path.read_bytes()[:-1])  # no newline at the end
    assert read_fertilities(path)[0].tolist() == VALUES.tolist()


def test_a_failure_leaves_the_old_file_and_no_other(path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_fertilities(path, VALUES + 1, SIZES)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


# -- checked against the pairs
# -------------------------------------------------------------------------------------------


def test_an_absent_file_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="no fertilities .*valid.de-en.fert: run nar-align .* -s de -t en"):
        FertilityDataset(pairs(dictionary()), fertility_path(tmp_path, "valid", "de", "en"))


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("\n0 1\n", "\n0 1\n0 1\n", "has 7 lines, the data set 6 pairs"),
        ("5\n", "", "has 5 lines, the data set 6 pairs"),
        ("0 12 100 1", "0 12 101", "line 3 has 3 numbers, the source 4 tokens"),
        ("5\n", "\n", "line 2 has 0 numbers, the source 1 tokens"),
        ("0 12 100 1", "0 12 100 2", "line 3 has numbers that add up to 114, the target 113 tokens"),
        ("\n0 1\n", "\n-1 2\n", "line 4 has other things than numbers from 0"),
        ("\n0 1\n", "\n0 one\n", "line 4 has other things than numbers from 0"),
        ("\n0 1\n", "\n0 1.0\n", "line 4 has other things than numbers from 0"),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 20])
def test_a_file_that_does_not_fit_is_refused(path, monkeypatch, block, old, new, says):
    monkeypatch.setattr(fertility, "CHUNK", block)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"train.en-de.fert,? {says}: run nar-align .* -s en -t de again$"):
        FertilityDataset(pairs(dictionary()), path)


def test_several_splits_in_one(tmp_path, path):
    second = fertility_path(tmp_path, "train1", "en", "de")
    write_fertilities(second, VALUES[:4], SIZES[:2])
    both = [np.concatenate([sizes, sizes[:2]]) for sizes in (SIZES, TARGETS)]
    dataset = FertilityDataset(pairs(dictionary(), *both), path, second)
    batch = dataset.collater([dataset[i] for i in (7, 5)])
    assert batch["net_input"]["fertilities"].tolist() == [[1, 1, 1], [5, 0, 0]]
    second.write_text("2 0 1\n6\n")
    with pytest.raises(ValueError, match="train1.en-de.fert, line 2 has numbers"):
        FertilityDataset(pairs(dictionary(), *both), path, second)


# -- in a batch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 8])
def test_fertilities_follow_their_sentences(path, multiple):
    dataset = FertilityDataset(pairs(dictionary(), pad_to_multiple=multiple), path)
    batch = dataset.collater([dataset[i] for i in (1, 4, 2)])  # the collater sorts by length
    assert batch["id"].tolist() == [4, 2, 1]
    found = batch["net_input"]["fertilities"]
    assert found.dtype == torch.int64 and found.shape == batch["net_input"]["src_tokens"].shape
    assert found[:, :6].tolist() == [[0, 0, 0, 0, 0, 1], [0, 12, 100, 1, 0, 0], [5, 0, 0, 0, 0, 0]]
    assert not found[:, 6:].any()
    padded = dataset.collater([dataset[1]], pad_to_length={"source": 16, "target": 7})
    assert padded["net_input"]["fertilities"].tolist() == [[5] + [0] * 15]
    assert dataset.collater([]) == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_task_makes_the_batches_of_the_pairs(path, workers):
    words = dictionary()
    task = NarTranslationTask(NarTranslationConfig(source_lang="en", target_lang="de"), words, words)
    plain = pairs(words, shuffle=False)
    dataset = FertilityDataset(plain, path)

    def batches(of):
        iterator = task.get_batch_iterator(
            of, max_tokens=150, max_positions=(5, 200), ignore_invalid_inputs=True, num_workers=workers, seed=1
        )
        return list(iterator.next_epoch_itr(shuffle=False))

    found, expected = batches(dataset), batches(plain)
    assert [b["id"].tolist() for b in found] == [b["id"].tolist() for b in expected]
    assert sorted(i for b in found for i in b["id"].tolist()) == [0, 1, 2, 3, 5]  # sentence 4 is too long
    for batch in found:
        assert batch["net_input"]["fertilities"].sum(1).tolist() == batch["target"].ne(words.pad()).sum(1).tolist()


def test_the_wrapped_pairs_answer(path):
    plain = pairs(dictionary(), shuffle=False)
    dataset = FertilityDataset(plain, path)
    everything = np.arange(len(plain))
    for name in (
        "src",
        "tgt",
        "src_sizes",
        "tgt_sizes",
        "sizes",
        "supports_prefetch",
        "supports_fetch_outside_dataloader",
        "can_reuse_epoch_itr_across_epochs",
    ):
        assert np.all(getattr(dataset, name) == getattr(plain, name)), name
    for call in (
        len,
        lambda d: d.ordered_indices(),
        lambda d: d.num_tokens_vec(everything),
        lambda d: d.get_batch_shapes(),
        lambda d: d.size(2),
        lambda d: d.num_tokens(2),
        lambda d: d.filter_indices_by_size(everything, (3, 9))[1],
    ):
        assert np.all(call(dataset) == call(plain))
    dataset.set_epoch(2)
