"""nar-distill through the real commands: line by line what fairseq-generate says, whatever happens on the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, hypotheses
from fairseq.data import Dictionary, data_utils
from in_process import own_refusal
from test_bad_input import AR, CMLM, TASK, TRAIN, binarise, contents, here, pairs

from nar_plugins.cli import distill

FLAGS = ("--cpu", "--beam", "3", "--lenpen", "0.6", "--max-len-b", "12", "--max-tokens", "200", "--no-progress-bar")
STEM = "train.src-tgt"


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Namespace:
    """A corpus of 200 training pairs, and a cmlm and a teacher of it; its weights are random, so that it says many
    things.
    """
    root = tmp_path_factory.mktemp("distill")
    splits = {"train": pairs(200, 1), "valid": pairs(9, 2), "test": pairs(11, 3)}
    splits["train"][7] = ("", "")
    data = binarise(root / "text", splits)
    for name, arch in (("cmlm", CMLM), ("ar", AR)):
        here("fairseq-train", data, *TRAIN, *arch, "--save-dir", root / name)
    last = "checkpoint_last.pt"
    state = torch.load(root / "ar" / last, weights_only=True)
    torch.manual_seed(1)
    for name, weight in state["model"].items():
        if weight.dim() == 2 and name.endswith(".weight"):  # fairseq 0.12.2's encoder has copies by other names
            weight.normal_(std=2 * weight.size(1) ** -0.5)
    torch.save(state, root / "ar.pt")
    return Namespace(root=root, data=data, ar=root / "ar.pt", cmlm=root / "cmlm" / last)


def arguments(made, out: Path, *more, data=None, teacher=None) -> list:
    return [str(a) for a in (data or made.data, "--teacher", teacher or made.ar, "--out", out, *FLAGS, *more)]


def refusal(*args, **kwargs) -> str:
    """The one-line message of a command that must fail."""
    return own_refusal(distill.main, *arguments(*args, **kwargs))


def data_set(folder: Path) -> dict:
    """Every file of a data set and its bytes."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.suffix != ".log"}


def lines(folder: Path, language: str) -> list:
    return [t.tolist() for t in data_utils.load_indexed_dataset(str(folder / f"{STEM}.{language}"), None, None)]


@pytest.fixture(scope="session")
def distilled(made) -> Path:
    """What the plain command writes."""
    out = made.root / "kd"
    distill.main(arguments(made, out))
    return out


def test_every_line_is_fairseq_generates_hypothesis(made, distilled):
    flags = [flag for flag in FLAGS if flag != "--cpu"]
    said = hypotheses(here("fairseq-generate", made.data, *TASK, *flags, "--gen-subset", "train", "--path", made.ar))
    dictionary = Dictionary.load(str(made.data / "dict.tgt.txt"))
    targets = lines(distilled, "tgt")
    assert len(targets) == 200 == len(said) and all(t[-1] == dictionary.eos() for t in targets)
    assert [dictionary.string(torch.tensor(t)) for t in targets] == [said[i][0][1] for i in range(200)]
    assert len({tuple(t) for t in targets}) > 40


def test_everything_but_the_training_targets_is_copied_byte_for_byte(made, distilled):
    before, after = data_set(made.data), data_set(distilled)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {f"{STEM}.tgt.bin", f"{STEM}.tgt.idx"}


def test_the_data_set_can_be_trained_on(distilled, tmp_path):
    here("fairseq-train", distilled, *TRAIN, *CMLM, "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_a_finished_data_set_is_left_as_it_is(made, distilled, capsys):
    before = contents(distilled)
    distill.main(arguments(made, distilled))
    said = capsys.readouterr().out
    assert said.endswith(f"{distilled} is done already\n") and "lines: 200\n" in said
    assert contents(distilled) == before


def test_a_killed_process_goes_on_to_the_same_bytes(made, distilled, tmp_path):
    out = tmp_path / "kd"
    command = [sys.executable, "-m", "nar_plugins.cli.distill", *arguments(made, out)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while process.poll() is None and not any(p.stat().st_size for p in out.glob(".distill/part-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = out.glob(".distill/part-*")
    assert not list(out.glob("*.idx"))
    finished = part.read_bytes()
    with open(part, "ab") as file:  # whatever was being written in that moment
        file.write(finished[: len(finished) // 2].rstrip(b"\n"))
    distill.main(arguments(made, out))
    assert data_set(out) == data_set(distilled)
    assert part.read_bytes().startswith(finished), "decoded batches are kept"
    resumed = sum(p.read_bytes().count(b"\n") for p in out.glob(".distill/part-*"))
    (whole,) = distilled.glob(".distill/part-*")
    assert resumed == whole.read_bytes().count(b"\n"), "and not decoded again"


def test_shards_say_what_is_missing_and_the_last_one_writes_the_same_bytes(made, distilled, tmp_path, capsys):
    out, shards = tmp_path / "kd", ("--num-shards", "3", "--shard-id")
    distill.main(arguments(made, out, *shards, "1"))
    assert "batches are still missing, of --num-shards 3 --shard-id 0, 2" in capsys.readouterr().out
    assert not data_set(out)
    distill.main(arguments(made, out, *shards, "2"))
    assert "of --num-shards 3 --shard-id 0\n" in capsys.readouterr().out
    distill.main(arguments(made, out))  # what is left may be shared out anew
    assert f"{out} is complete" in capsys.readouterr().out
    assert data_set(out) == data_set(distilled)


def test_mixing_and_filtering(made, distilled, tmp_path, capsys):
    out = tmp_path / "kd"
    distill.main(arguments(made, out, "--mix", "--filter"))
    report = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)
    dropped = sum(int(count) for name, count in report.items() if name.startswith("dropped"))
    assert 0 < dropped < 200 and int(report["distilled pairs written"]) == 200 - dropped
    source, target = lines(out, "src"), lines(out, "tgt")
    assert source[:200] == lines(made.data, "src") and target[:200] == lines(made.data, "tgt")
    said = list(zip(lines(distilled, "src"), lines(distilled, "tgt")))
    kept = list(zip(source[200:], target[200:]))
    assert len(kept) == 200 - dropped and [pair for pair in said if pair in kept] == kept
    only_counted = (distilled / ".distill" / "report.txt").read_text()
    assert f"kept (--filter drops them), empty: {report['dropped, empty']}\n" in only_counted


# -- lines that are too long -------------------------------------------------------------------------------------------


def test_a_line_longer_than_the_positions_is_an_error_unless_skipped(made, tmp_path, capsys):
    spoilt = pairs(12, 1)
    spoilt[1] = (" ".join(["w1"] * 25),) * 2  # the teacher has 20 positions
    data = binarise(tmp_path / "text", {"train": spoilt, "valid": pairs(9, 2)}, "--srcdict", made.data / "dict.src.txt")
    said = refusal(made, tmp_path / "kd", data=data)
    assert "1 lines of train are longer than the positions (20, 20), the first is line 1 (26, 26): " in said
    assert "--skip-invalid-size-inputs-valid-test leaves" in said and not (tmp_path / "kd").exists()
    distill.main(arguments(made, tmp_path / "kd", "--skip-invalid-size-inputs-valid-test", data=data))
    assert "left out, longer than the positions: 1\n" in capsys.readouterr().out
    kept = lines(data, "src")
    del kept[1]
    assert lines(tmp_path / "kd", "src") == kept


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_another_dictionary_is_refused_with_the_first_symbol(made, tmp_path):
    other = binarise(tmp_path / "text", {"train": pairs(60, 1, lambda s: s.replace("w", "v"))})
    said = refusal(made, tmp_path / "kd", data=other)
    assert "the source dictionary of" in said and "symbol 4 is 'v" in said and "the checkpoint has 'w" in said
    assert not (tmp_path / "kd").exists()


def test_a_non_autoregressive_teacher_is_refused_by_name(made, tmp_path):
    assert f"{made.cmlm} holds a CmlmModel: a teacher is" in refusal(made, tmp_path / "kd", teacher=made.cmlm)


def test_a_missing_teacher_is_named(made, tmp_path):
    assert f"no checkpoint at {tmp_path / 'nothing.pt'}" in refusal(
        made, tmp_path / "kd", teacher=tmp_path / "nothing.pt"
    )


def test_other_settings_do_not_touch_an_existing_data_set(made, distilled, tmp_path):
    before = contents(distilled)
    said = refusal(made, distilled, "--beam", "2")
    assert f"existing different data set, {distilled}: beam is 3 there and 2 here: give" in said
    assert "mix is False there and True here" in refusal(made, distilled, "--mix")
    other = shutil.copy(made.cmlm, tmp_path / "other.pt")
    assert "teacher is" in refusal(made, distilled, teacher=other)
    data = Path(shutil.copytree(made.data, tmp_path / "bin"))
    (data / "test.src-tgt.src.bin").write_bytes(b"other")
    assert "test.src-tgt.src.bin is" in refusal(made, distilled, data=data)
    assert contents(distilled) == before


def test_a_folder_that_holds_something_else_is_not_touched(made):
    before = contents(made.data)
    assert f"{made.data} holds something else" in refusal(made, made.data)
    assert contents(made.data) == before


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--sampling"], "--sampling is no option of nar-distill: a run that was stopped"),
        (["--nbest", "2"], "--nbest is no option"),
        (["--prefix-size", "1"], "--prefix-size is no option"),
        (["--path", "x.pt"], "--path is no option of nar-distill: the teacher is --teacher"),
        (["--gen-subset", "valid"], "--gen-subset is no option of nar-distill: the split is --train-subset's"),
        (["--remove-bpe"], "--post-process is no option"),
        (["--match-source-len"], "--match-source-len is no option"),
        (["--generator", "mask_predict"], "--generator mask_predict is no option"),
        (["--iterations", "4"], "--iterations"),
        (["--num-shards", "2", "--shard-id", "2"], "--shard-id 2: with --num-shards 2 it is 0 to 1"),
        (["--dataset-impl", "raw"], "--dataset-impl raw"),
        (["--task", "translation"], "--task is no option"),
        (["--distributed-world-size", "2"], "--distributed-world-size is no option of nar-distill: use --num-shards"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(made, tmp_path, flags, said):
    assert said in refusal(made, tmp_path / "kd", *flags)
    assert not (tmp_path / "kd").exists()


# -- ensembles, buckets and what killed runs leave
# -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def second(made) -> Path:
    """Another teacher of the same kind."""
    state = torch.load(made.ar, weights_only=True)
    torch.manual_seed(2)
    for name, weight in state["model"].items():
        if weight.dim() == 2 and name.endswith(".weight"):  # fairseq 0.12.2's encoder has copies by other names
            weight.normal_(std=2 * weight.size(1) ** -0.5)
    torch.save(state, made.root / "second.pt")
    return made.root / "second.pt"


def generated(made, path, *more) -> list:
    """The texts of fairseq-generate on the training split, in order."""
    flags = [flag for flag in FLAGS if flag != "--cpu"]
    said = hypotheses(
        here("fairseq-generate", made.data, *TASK, *flags, "--gen-subset", "train", "--path", path, *more)
    )
    return [said[number][0][1] for number in range(200)]


def written(made, folder: Path) -> list:
    dictionary = Dictionary.load(str(made.data / "dict.tgt.txt"))
    return [dictionary.string(torch.tensor(tokens)) for tokens in lines(folder, "tgt")]


def test_an_ensemble_of_teachers_says_what_fairseq_generates_ensemble_says(made, distilled, second, tmp_path, capsys):
    both = f"{made.ar}:{second}"
    distill.main(arguments(made, tmp_path / "kd", teacher=both))
    assert f"teacher: {both}\n" in capsys.readouterr().out
    texts = written(made, tmp_path / "kd")
    assert texts == generated(made, both)
    assert texts != written(made, distilled)
    said = refusal(made, tmp_path / "kd")
    assert "teacher is " in said and ":" in said.split("teacher is ")[1].split(" there")[0]
    assert "teacher is " in refusal(made, tmp_path / "kd", teacher=f"{second}:{second}")


def test_every_teacher_of_an_ensemble_is_checked(made, second, tmp_path):
    assert f"no checkpoint at {tmp_path / 'gone.pt'}" in refusal(
        made, tmp_path / "kd", teacher=f"{second}:{tmp_path / 'gone.pt'}"
    )
    assert f"{made.cmlm} holds a CmlmModel: a teacher is" in refusal(
        made, tmp_path / "kd", teacher=f"{second}:{made.cmlm}"
    )
    state = torch.load(second, weights_only=True)
    symbols = state["task_state"]["symbols"]
    state["task_state"]["symbols"] = {side: text.replace("w", "v") for side, text in symbols.items()}
    torch.save(state, tmp_path / "other.pt")
    said = refusal(made, tmp_path / "kd", teacher=f"{made.ar}:{tmp_path / 'other.pt'}")
    assert "dictionary of" in said and "the checkpoint has 'v" in said and not (tmp_path / "kd").exists()


def test_buckets_of_lengths_change_no_line(made, distilled, tmp_path):
    distill.main(arguments(made, tmp_path / "kd", "--num-batch-buckets", "2"))
    texts = written(made, tmp_path / "kd")
    assert texts == generated(made, made.ar, "--num-batch-buckets", "2") == written(made, distilled)
    here("fairseq-train", distilled, *TRAIN, *CMLM, "--num-batch-buckets", "2", "--save-dir", tmp_path / "save")
    assert (tmp_path / "save" / "checkpoint_last.pt").exists()


def test_what_a_run_that_was_killed_left_is_removed_by_the_next(made, distilled, tmp_path):
    """It dies while it writes; the next finds all batches and writes, a third finds all of it."""
    out = tmp_path / "kd"
    for left in (1, 1, 0):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # the threads of the parent are not there
            if left:
                os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
            distill.main(arguments(made, out))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) == bool(left)
        assert len(list(out.glob(".distill/tmp*"))) == left
    assert data_set(out) == data_set(distilled)
    name = next(out.glob(".distill/settings.json")).parent / f"tmp-{socket.gethostname()}-left"
    name.mkdir()
    distill.main(arguments(made, out))  # "done already"
    assert not name.exists()
