"""Distillation without a teacher: what is broken, what a killed run leaves, and what is written."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from fairseq.data import data_utils

from nar_plugins.corpora import distill_folder
from nar_plugins.corpora.distill_data import Data, binarise, report_of, write
from nar_plugins.corpora.distill_folder import Folder
from nar_plugins.corpora.distill_job import Job
from nar_plugins.corpora.filters import GRACE, REASONS, Limits, max_repeats, reject_reason

EOS, UNK = 2, 3


def line(*tokens: int) -> np.ndarray:
    return np.array([*tokens, EOS])


def words(count: int) -> np.ndarray:
    """So many different words."""
    return line(*range(10, 10 + count))


# -- what is broken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, repeats",
    [
        ([], 0),
        ([5], 1),
        ([5, 6, 7], 1),
        ([5, 5], 2),
        ([4, 5, 5, 5, 6], 3),
        ([5, 6, 5, 6], 2),
        ([5, 6, 5, 6, 5], 2),
        ([1, 5, 6, 7, 5, 6, 7, 5, 6, 7, 2], 3),
        ([5, 5, 6, 5, 5, 6], 2),
        (list(range(8)) * 4, 4),
        (list(range(9)) * 4, 1),
    ],
)
def test_repeats_are_those_of_the_ngram_that_stands_most_often_in_a_row(tokens, repeats):
    assert max_repeats(np.array(tokens, dtype=np.int64)) == repeats


@pytest.mark.parametrize(
    "source, target, why",
    [
        (words(5), words(5), None),
        (words(5), line(), "empty"),
        (line(), line(), "empty"),
        (words(40), words(49), None),
        (words(40), words(50), "unfinished"),
        (words(10), words(30 + GRACE), None),
        (words(10), words(31 + GRACE), "length ratio"),
        (words(30 + GRACE), words(10), None),
        (words(31 + GRACE), words(10), "length ratio"),
        (line(), words(GRACE), None),
        (line(), words(GRACE + 1), "length ratio"),
        (words(5), line(7, 7, 7), None),
        (words(5), line(7, 7, 7, 7), "repetition"),
        (line(9, 9, 9, 9), line(7, 7, 7, 7), None),
        (line(9, 9, 9, 9), line(7, 7, 7, 7, 7), "repetition"),
        (words(8), line(*[7, 8] * 4), "repetition"),
        (words(4), line(7, UNK, 8, UNK), None),
        (words(3), line(UNK, 8, UNK), "<unk>"),
    ],
)
def test_a_line_has_the_first_reason_that_holds(source, target, why):
    assert reject_reason(source, target, 50, Limits(), UNK) == why


def test_limits_are_limits():
    assert reject_reason(words(10), words(10 + GRACE), 50, Limits(ratio=1), UNK) is None
    assert reject_reason(words(10), words(11 + GRACE), 50, Limits(ratio=1), UNK) == "length ratio"
    assert reject_reason(words(3), line(7, 7), 50, Limits(repeats=1), UNK) == "repetition"
    assert reject_reason(words(4), line(7, 8, 9, UNK), 50, Limits(unknown=0.2), UNK) == "<unk>"


# -- what a run leaves -------------------------------------------------------------------------------------------------

BATCHES = [[0, 3], [1], [2, 4]]


def record(number: int) -> dict:
    lines = BATCHES[number][::-1]
    return {"batch": number, "lines": lines, "longest": 50, "tokens": [[10 + i, 11 + i, EOS] for i in lines]}


def content(*numbers: int) -> bytes:
    return b"".join(json.dumps(record(n)).encode() + b"\n" for n in numbers)


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(tmp_path / "out", {"beam": 5, "teacher": "abc"})
    made.claim()
    return made


def part(folder: Folder, shard: int, text: bytes) -> None:
    with folder.new_part(shard, 2) as file:
        file.write(text)


def test_records_are_those_of_all_parts(folder):
    assert folder.records(BATCHES) == {}
    part(folder, 0, content(0, 2))
    part(folder, 1, content(1))
    found = folder.records(BATCHES)
    assert sorted(found) == [0, 1, 2]
    assert found[2]["lines"] == [4, 2] and [t.tolist() for t in found[2]["tokens"]] == [[14, 15, EOS], [12, 13, EOS]]


def test_a_record_that_was_cut_anywhere_is_not_there(folder):
    whole, last = content(0), content(2)
    for length in range(len(last)):
        path = folder.state_folder / "part-0-of-1-x.jsonl"
        path.write_bytes(whole + last[:length])
        assert sorted(folder.records(BATCHES)) == [0]
    path.write_bytes(whole + last)
    assert sorted(folder.records(BATCHES)) == [0, 2]


def test_a_run_never_writes_into_the_part_of_another(folder):
    part(folder, 0, content(0) + content(2)[:20])
    part(folder, 0, content(2))
    assert sorted(folder.records(BATCHES)) == [0, 2]
    assert len(list(folder.state_folder.glob("part-*"))) == 2


@pytest.mark.parametrize(
    "spoilt",
    [
        b"nonsense\n",
        b"{}\n",
        content(0).replace(b"[3, 0]", b"[3, 1]"),
        content(0).replace(b'"batch": 0', b'"batch": 7'),
        content(0).replace(b"[[13, 14, 2], ", b"["),
    ],
)
def test_a_whole_record_that_does_not_fit_is_an_error_that_names_the_file(folder, spoilt):
    part(folder, 1, spoilt)
    with pytest.raises(ValueError, match="part-1-of-2-.* is damaged: delete it"):
        folder.records(BATCHES)


def test_a_folder_is_taken_by_the_first_and_shared_with_the_same_settings(folder):
    same = Folder(folder.out, dict(folder.settings))
    same.check()
    same.claim()
    assert [p.name for p in folder.state_folder.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"beam": 4, "teacher": "abc"}, "beam is 5 there and 4 here: give"),
        ({"beam": 5, "teacher": "xyz"}, "teacher is abc there and xyz here: give"),
        ({"beam": 5}, "teacher is abc there and None here: give"),
        ({"beam": 4, "teacher": "x", "a": 1, "b": 2}, "there and x here; a is None there and 1 here; and 1 more: give"),
    ],
)
def test_other_settings_are_an_error_that_says_what_differs(folder, settings, said):
    for call in (Folder(folder.out, settings).check, Folder(folder.out, settings).claim):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(f"distilling into an existing different data set, {folder.out}: ")
        assert said in str(error.value)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else: give --out a new folder"):
        Folder(tmp_path, {}).check()
    with pytest.raises(ValueError, match="holds something else"):
        Folder(tmp_path / "mine.txt", {}).check()
    Folder(tmp_path / "new", {}).check()
    (tmp_path / "new").mkdir()
    Folder(tmp_path / "new", {}).check()
    (tmp_path / "new" / ".distill").mkdir()  # of a process that was killed before it had settings
    Folder(tmp_path / "new", {}).check()


# -- what is written ---------------------------------------------------------------------------------------------------


def read(stem: Path) -> list:
    return [tokens.tolist() for tokens in data_utils.load_indexed_dataset(str(stem), None, None)]


ORIGINAL = [[20 + i, 21 + i, EOS] for i in range(5)]


@pytest.fixture
def data(tmp_path):
    """Five pairs, and a test set that is no data set at all, to be copied."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stems = ["train.a-b.a", "train.a-b.b"]
    for stem in stems:
        binarise((torch.tensor(t) for t in ORIGINAL), str(folder / stem), 40)
    for name in ("test.a-b.a.bin", "dict.a.txt", "train.a-c.a.bin", "valid.a-b.fert", "preprocess.log"):
        (folder / name).write_text(name)
    cfg = SimpleNamespace(data=str(folder), source_lang="a", target_lang="b", dataset_impl=None)
    return Data(cfg, "train")


def test_the_dictionaries_and_the_other_splits_are_copied(data):
    assert [p.name for p in data.copied] == ["dict.a.txt", "test.a-b.a.bin"]
    assert len(data.files) == 6 and data.last_file == "train.a-b.b.idx"


def test_data_of_the_other_direction_keep_their_names(data):
    cfg = SimpleNamespace(data=str(data.folder), source_lang="b", target_lang="a", dataset_impl=None)
    assert Data(cfg, "train").stems == ["train.a-b.b", "train.a-b.a"]


def test_several_training_sets_are_refused(data):
    cfg = SimpleNamespace(data=f"{data.folder}:{data.folder}", source_lang="a", target_lang="b", dataset_impl=None)
    with pytest.raises(ValueError, match="names 2 data folders"):
        Data(cfg, "train")
    cfg.data = str(data.folder)
    (data.folder / "train1.a-b.a.idx").touch()
    with pytest.raises(ValueError, match="holds train1 beside train"):
        Data(cfg, "train")


def written(folder, data, records, **job):
    """Source lines, target lines and the report of a data set."""
    dictionary = tiny.dictionary(36)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    report = write(Job("teacher.pt", folder.out, **job), task, data, records, folder)
    assert report == folder.report.read_text()
    assert sorted(p.name for p in folder.state_folder.iterdir()) == ["report.txt", "settings.json"]
    return *(read(folder.out / stem) for stem in data.stems), report.splitlines()


def records(**changed) -> dict:
    """Finished batches, the last first; ``line3=[...]`` changes what was said of line 3."""
    found = {n: record(n) for n in (2, 1, 0)}
    for r in found.values():
        r["tokens"] = [np.array(changed.get(f"line{i}", t)) for i, t in zip(r["lines"], r["tokens"])]
    return found


def test_every_line_is_written_in_the_order_of_the_data(folder, data):
    source, target, report = written(folder, data, records())
    assert source == ORIGINAL
    assert target == [[10 + i, 11 + i, EOS] for i in range(5)]
    assert sorted(p.name for p in folder.out.iterdir() if p.is_file()) == sorted(
        ["dict.a.txt", "test.a-b.a.bin", *(f"{stem}.{kind}" for stem in data.stems for kind in ("bin", "idx"))]
    )
    assert (folder.out / "test.a-b.a.bin").read_bytes() == b"test.a-b.a.bin"
    for kind in ("bin", "idx"):
        name = f"{data.stems[0]}.{kind}"
        assert (folder.out / name).read_bytes() == (data.folder / name).read_bytes()
    assert report[:3] == ["teacher: teacher.pt", "lines: 5", "distilled pairs written: 5"]
    assert report[3:5] == ["different outputs: 5", "left out, longer than the positions: 0"]
    assert report[5:] == [f"kept (--filter drops them), {name}: 0" for name in REASONS]


def test_a_teacher_that_says_the_same_of_every_line_is_told(folder, data):
    _, _, report = written(folder, data, records(**{f"line{i}": [9, 8, EOS] for i in range(4)}))
    assert "different outputs: 2" in report
    said = report_of(Job("teacher.pt", folder.out), 18377, 18377, 5, Counter({None: 18377}))
    assert "different outputs: 5 (very few: the teacher hardly heeds its sources)" in said.splitlines()


def test_mixing_puts_the_original_pairs_first(folder, data):
    source, target, report = written(folder, data, records(), mix=True)
    assert source == ORIGINAL + ORIGINAL
    assert target == ORIGINAL + [[10 + i, 11 + i, EOS] for i in range(5)]
    assert "original pairs written first: 5" in report and "distilled pairs written: 5" in report


def test_filtering_drops_pairs_and_counts_them_by_reason(folder, data):
    found = records(line1=[EOS], line3=[9, 9, 9, 9, EOS], line4=[EOS])
    source, target, report = written(folder, data, found, drop=True)
    assert source == [ORIGINAL[0], ORIGINAL[2]] and target == [[10, 11, EOS], [12, 13, EOS]]
    assert "distilled pairs written: 2" in report
    assert "dropped, empty: 2" in report and "dropped, repetition: 1" in report and "dropped, <unk>: 0" in report


def test_mixing_and_filtering_keep_all_original_pairs(folder, data):
    source, target, _ = written(folder, data, records(line0=[EOS]), drop=True, mix=True)
    assert source == ORIGINAL + ORIGINAL[1:] and target[5] == [11, 12, EOS] and len(target) == 9


def test_without_filtering_the_same_is_only_counted(folder, data):
    _, target, report = written(folder, data, records(line1=[EOS]))
    assert target[1] == [EOS] and "kept (--filter drops them), empty: 1" in report


def test_lines_that_no_batch_has_are_left_out_and_counted(folder, data):
    found = records()
    del found[2]
    source, target, report = written(folder, data, found)
    assert source == [ORIGINAL[0], ORIGINAL[1], ORIGINAL[3]] and len(target) == 3
    assert "left out, longer than the positions: 2" in report


def test_nothing_left_is_an_error(folder, data):
    with pytest.raises(ValueError, match="none of 5 lines would be left"):
        written(folder, data, records(**{f"line{i}": [EOS] for i in range(5)}), drop=True)
    assert not list(folder.out.glob("*.idx"))


def test_writing_twice_gives_the_same_bytes(folder, data):
    written(folder, data, records())
    before = {p: p.read_bytes() for p in folder.out.iterdir() if p.is_file()}
    written(folder, data, records())
    assert {p: p.read_bytes() for p in folder.out.iterdir() if p.is_file()} == before


# -- what killed runs leave
# ------------------------------------------------------------------------------------------------


def in_child(folder) -> tuple:
    """A process that holds a temporary folder until it is killed: its id, when the folder is there."""
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        with folder.shared(), folder.temporary():
            os.write(say, b".")
            signal.pause()
    os.read(ready, 1)
    return child


def temporary(folder) -> list:
    return list(folder.state_folder.glob("tmp*"))


def test_only_folders_of_dead_runs_are_removed(folder):
    child = in_child(folder)
    (alive,) = temporary(folder)
    dead = folder.state_folder / f"{folder.unfinished}dead"
    elsewhere = folder.state_folder / "tmp-another-machine-x"
    for name in (dead, elsewhere):
        name.mkdir()
        (name / "file").touch()
    with folder.shared():  # another run works: nobody knows whose they are
        assert alive.exists() and dead.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with folder.shared(), folder.temporary() as mine:
        assert temporary(folder) and not alive.exists() and not dead.exists() and elsewhere.exists()
        with folder.shared():  # a second run, which begins while this one works
            assert mine.exists()
    assert temporary(folder) == [elsewhere]


def test_without_locks_nothing_is_removed(folder, monkeypatch):
    def no_locks(*args):
        raise OSError("no locks available")

    monkeypatch.setattr(distill_folder.fcntl, "flock", no_locks)
    dead = folder.state_folder / f"{folder.unfinished}dead"
    dead.mkdir()
    with folder.shared():
        assert dead.exists()
