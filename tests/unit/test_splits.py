"""Which files a split has: of either direction, binarised or raw, alone or with others that fairseq puts behind it."""

from pathlib import Path

import pytest

from nar_plugins.data.splits import BINARISED, RAW, combined_splits, find_languages, find_splits, find_stems, folder_of


def made(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).touch()
    return str(folder)


@pytest.mark.parametrize(
    "there, ending, pair",
    [
        (["train.a-b.a.idx", "train.a-b.b.idx"], BINARISED, "a-b"),
        (["train.b-a.a.idx", "train.b-a.b.idx"], BINARISED, "b-a"),
        (["train.a-b.a", "train.a-b.b", "train.b-a.a.idx", "train.b-a.b.idx"], BINARISED, "b-a"),
        (["train.a-b.a", "train.a-b.b", "train.b-a.a.idx", "train.b-a.b.idx"], RAW, "a-b"),
        (["train.a-b.b.idx", "train.b-a.a.idx", "train.b-a.b.idx"], BINARISED, "b-a"),  # fairseq asks for the source
        (["train.b-a.b.idx"], BINARISED, "b-a"),  # only the target is there, and the source will be named
        ([], BINARISED, "a-b"),
    ],
)
def test_the_direction_is_that_of_the_source_that_is_there(tmp_path, there, ending, pair):
    folder = made(tmp_path, *there)
    assert find_stems(folder, "train", "a", "b", [ending]) == [f"{folder}/train.{pair}.{side}" for side in "ab"]


def test_combined_splits_end_at_the_first_gap_as_fairseqs_do(tmp_path):
    names = ["train.a-b.a.idx", "train1.a-b.a.idx", "train2.b-a.a.idx", "train4.a-b.a.idx", "train3.a-b.a"]
    folder = made(tmp_path, *names)
    assert combined_splits(folder, "train", "a", "b", None) == ["train", "train1", "train2"]
    assert combined_splits(folder, "train2", "a", "b", "raw") == ["train2"]


def test_splits_with_both_sides_are_found_in_order(tmp_path):
    both = [f"{split}.a-b.{side}.idx" for split in ("valid", "train10", "train2", "train") for side in "ab"]
    folder = made(tmp_path, *both, "test.a-b.a.idx", "dict.a.txt", "other.a-b.a.idx", "other.a-b.b.idx")
    assert find_splits(folder, "a", "b") == ["train", "train2", "train10", "valid"]


def test_languages_are_those_given_or_a_files(tmp_path):
    folder = made(tmp_path, "dict.a.txt", "train.a-b.a.idx", "train.a-b.fert")
    assert find_languages(folder) == find_languages(folder, "a") == ("a", "b")
    assert (
        find_languages(folder, "b", "a")
        == find_languages(folder, "b")
        == find_languages(folder, None, "a")
        == ("b", "a")
    )
    assert find_languages(folder, "c") == ("c", "b") and find_languages(folder, None, "c") == ("a", "c")
    with pytest.raises(ValueError, match="no data folder"):
        find_languages(folder + "x", "a", "b")


def test_training_takes_turns_between_folders():
    assert [folder_of("x:y", epoch) for epoch in (1, 2, 3)] == ["x", "y", "x"]
    assert folder_of("x:y") == "x"
