"""A run killed with SIGKILL and started again, and a run on two processes, have the curve of an undisturbed one."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT, preprocess, random_sentences, run, write_pairs

UPDATES = 30
COMMAND = (
    "--user-dir",
    "nar_plugins",
    "--task",
    "nar_translation",
    "--arch",
    "cmlm_tiny",
    "--criterion",
    "nar_loss",
    "--share-all-embeddings",
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--max-tokens",
    "600",
    "--seed",
    "3",
    "--cpu",
    "--log-format",
    "json",
    "--log-interval",
    "1",
    "--disable-validation",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """600 pairs: seven or eight updates an epoch, so that a restart meets several epochs."""
    folder = tmp_path_factory.mktemp("resume")
    for split, count in (("train", 600), ("valid", 20)):
        write_pairs(folder, [(s, s) for s in random_sentences(count, count)], split)
    return preprocess(folder, folder / "bin")


def curve(log: str) -> dict:
    """Number of the update -> (loss, gradient norm) as printed."""
    points = {}
    for line in log.splitlines():
        if "train_inner" in line and "{" in line:
            values = json.loads(line[line.index("{") :])
            points[int(values["num_updates"])] = (values["loss"], values["gnorm"])
    return points


def test_killed_and_started_again(data, tmp_path):
    flags = (
        *COMMAND,
        "--dropout",
        "0.2",
        "--save-interval-updates",
        "4",
        "--no-epoch-checkpoints",
        "--max-update",
        str(UPDATES),
    )
    whole = curve(run("fairseq-train", data, *flags, "--save-dir", tmp_path / "whole"))
    assert sorted(whole) == list(range(1, UPDATES + 1))

    program = Path(sys.executable).parent / "fairseq-train"
    given = [str(program), str(data), *flags, "--save-dir", str(tmp_path / "killed")]
    process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if '"num_updates": "18"' in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    rest = curve(run("fairseq-train", *given[1:]))
    assert min(rest) in range(13, 20) and max(rest) == UPDATES  # it went on from a checkpoint, not from the start
    assert {n: whole[n] for n in rest} == rest


def on_two_processes(*arguments) -> str:
    """fairseq-train as two gloo processes on the CPU; the output of the first one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = forked.program("fairseq-train")
    spread = (
        "--distributed-world-size",
        "2",
        "--distributed-no-spawn",
        "--distributed-backend",
        "gloo",
        "--ddp-backend",
        "legacy_ddp",
        "--device-id",
        "0",
        "--distributed-init-method",
        f"tcp://127.0.0.1:{port}",
    )
    ranks = [
        subprocess.Popen(
            [str(program), *map(str, arguments), *spread, "--distributed-rank", str(rank)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    logs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], logs[0][-3000:]
    return logs[0]


# -- BANG: sampled rows in fine-tuning, hidden spans in pre-training
# -----------------------------------------------------

BANG = (
    "--user-dir",
    "nar_plugins",
    "--arch",
    "bang_tiny",
    "--criterion",
    "bang_loss",
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--seed",
    "3",
    "--cpu",
    "--log-format",
    "json",
    "--log-interval",
    "1",
    "--disable-validation",
)
FINE_TUNING = (*BANG, "--task", "nar_translation", "--bang-rows", "sample:1", "--max-tokens", "600")
PRETRAINING = (
    *BANG,
    "--task",
    "bang_pretraining",
    "--max-tokens",
    "400",
    "--tokens-per-sample",
    "100",
    "--dropout",
    "0",
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """About 6,000 tokens of text: some eighteen batches of four samples."""
    folder = tmp_path_factory.mktemp("raw")
    for split, count in (("train", 700), ("valid", 40)):
        (folder / split).write_text("".join(f"{s}\n" for s in random_sentences(count, count)), encoding="utf-8")
    run(
        "fairseq-preprocess",
        "--only-source",
        "--trainpref",
        folder / "train",
        "--validpref",
        folder / "valid",
        "--destdir",
        folder / "bin",
    )
    return folder / "bin"


def test_bang_fine_tuning_stopped_and_continued(data, tmp_path):
    """With the epoch's end between the stop and the last update; the rows drawn are those of the undisturbed run
    too.
    """
    flags = (*FINE_TUNING, "--dropout", "0.2")
    whole = curve(run("fairseq-train", data, *flags, "--max-update", 12, "--no-save"))
    parts = [
        curve(run("fairseq-train", data, *flags, "--max-update", last, "--save-dir", tmp_path)) for last in (5, 12)
    ]
    assert [sorted(part) for part in parts] == [list(range(1, 6)), list(range(6, 13))]
    assert {**parts[0], **parts[1]} == whole


def test_bang_pretraining_on_two_processes_is_one_with_update_freq_2(raw):
    flags = (*PRETRAINING, "--no-save", "--max-update", "12")
    alone = curve(run("fairseq-train", raw, *flags, "--update-freq", 2))
    assert curve(on_two_processes(raw, *flags)) == alone and len(alone) == 12


def test_bang_pretraining_in_bfloat16(raw):
    """The loss falls as in float32, though not by the same digits: the option is not ignored."""
    flags = (*PRETRAINING, "--no-save", "--max-update", "12")
    curves = [curve(run("fairseq-train", raw, *flags, "--train-dtype", dtype)) for dtype in ("bfloat16", "float32")]
    half, full = ([float(loss) for loss, _ in points.values()] for points in curves)
    assert len(half) == 12 and all(math.isfinite(loss) for loss in half)
    assert half[-1] < half[0] - 0.1  # random words: nothing but their frequencies can be learned
    assert half == pytest.approx(full, abs=0.05) and curves[0] != curves[1]


def test_patience_goes_on_counting_in_a_resumed_training(data, tmp_path):
    """A rate of nearly nothing: no validation is better than the first."""
    flags = [flag for flag in COMMAND if flag != "--disable-validation"]
    flags += ["--lr", "1e-30", "--patience", "3", "--no-epoch-checkpoints", "--save-dir", tmp_path / "run"]
    flags += ["--num-workers", "0"]

    def validations(*more) -> list:
        log = run("fairseq-train", data, *flags, *more)
        return [json.loads(line[line.index("{") :])["epoch"] for line in log.splitlines() if '"valid_loss"' in line]

    assert validations("--max-epoch", "2") == [1, 2]
    assert validations("--max-epoch", "9") == [3, 4], "three after the best, which was the first"
    assert validations("--max-epoch", "9") == [5], "it had stopped"
    assert validations("--max-epoch", "9", "--reset-meters") == [6, 7, 8, 9]
