"""A run killed with SIGKILL and started again, and a run on two processes, have the curve of an undisturbed one."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, preprocess, random_sentences, run, write_pairs

UPDATES = 30
COMMAND = ("--user-dir", "nar_plugins", "--task", "nar_translation", "--arch", "cmlm_tiny", "--criterion", "nar_loss",
           "--share-all-embeddings", "--optimizer", "adam", "--lr", "1e-3", "--max-tokens", "600", "--seed", "3", "--cpu",
           "--log-format", "json", "--log-interval", "1", "--disable-validation")  # fmt: skip


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
            values = json.loads(line[line.index("{"):])
            points[int(values["num_updates"])] = (values["loss"], values["gnorm"])
    return points


def test_killed_and_started_again(data, tmp_path):
    flags = (*COMMAND, "--dropout", "0.2", "--save-interval-updates", "4", "--no-epoch-checkpoints", "--max-update", str(UPDATES))
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


def test_two_processes_are_one_with_update_freq_2(data, tmp_path):
    flags = (*COMMAND, "--dropout", "0", "--no-save", "--max-update", "12")
    alone = curve(run("fairseq-train", data, *flags, "--update-freq", 2))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = Path(sys.executable).parent / "fairseq-train"
    spread = ("--distributed-world-size", "2", "--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend",
              "legacy_ddp", "--device-id", "0", "--distributed-init-method", f"tcp://127.0.0.1:{port}")  # fmt: skip
    ranks = [
        subprocess.Popen([str(program), str(data), *flags, *spread, "--distributed-rank", str(rank)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for rank in (0, 1)
    ]  # fmt: skip
    logs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], logs[0][-3000:]
    assert curve(logs[0]) == alone and len(alone) == 12
