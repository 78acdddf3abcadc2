"""Two processes on CPUs have the curve of one with ``--update-freq 2``, under both of fairseq's data-parallel wrappers.

Each of the three processes here (one alone, and two ranks) runs all trainings, one after the other, through
fairseq-train's own entry. This file is what they run, too.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

UPDATES = 3
COMMON = (
    "--user-dir nar_plugins --task nar_translation --optimizer adam --lr 1e-3 --max-tokens 200 --seed 3 --cpu "
    f"--dropout 0 --log-format json --log-interval 1 --disable-validation --no-save --max-update {UPDATES} "
    "--label-smoothing "
)
LEGACY, DEFAULT, UNUSED = "legacy_ddp", "pytorch_ddp", "pytorch_ddp --find-unused-parameters"
DAG = "0 --arch dag_tiny --criterion nar_loss --upsample 3 --glancing 0.5"
CMLM, NAT = "0.1 --arch cmlm_tiny --criterion nar_loss", "0 --arch nat_tiny --criterion nar_loss"
BLOCKWISE, BANG = "0.1 --arch blockwise_tiny --criterion blockwise_loss", "0.1 --arch bang_tiny --criterion bang_loss"
TIED = "--share-all-embeddings"
TRAININGS = {  # name -> the wrapper, the other flags; what is not TIED has three tables
    "cmlm": (LEGACY, f"{CMLM} {TIED}"),
    "cmlm, untied": (DEFAULT, CMLM),
    "cmlm, untied, search for unused": (UNUSED, CMLM),
    "nat, fertilities": (LEGACY, f"{NAT} {TIED}"),
    "nat, glancing, untied": (DEFAULT, f"{NAT} --source-copy soft --glancing 0.5"),
    "nat, ctc, untied, search for unused": (UNUSED, f"{NAT} --ctc --upsample 3"),
    "dag": (LEGACY, f"{DAG} {TIED}"),
    "dag, untied": (DEFAULT, DAG),
    "blockwise, one head an update": (LEGACY, f"{BLOCKWISE} {TIED}"),
    "blockwise, all heads, untied": (DEFAULT, f"{BLOCKWISE} --block-loss mean"),
    "blockwise, sequential, search for unused": (UNUSED, f"{BLOCKWISE} --block-head sequential --block-loss weighted"),
    "bang, sampled rows": (LEGACY, f"{BANG} --bang-rows sample:1"),
    "bang": (DEFAULT, BANG),
    "bang, modes in turn, search for unused": (UNUSED, f"{BANG} --nar-ratio 0.5"),
}


def train_all(data: str, rank: str, port: str) -> None:
    """All trainings, as one of two ranks or, without a rank, alone."""
    from in_process import here

    for name, (wrapper, flags) in TRAININGS.items():
        print(f"== {name}", flush=True)
        spread = (
            f"--distributed-world-size 2 --distributed-rank {rank} --distributed-no-spawn --distributed-backend gloo "
            f"--distributed-init-method tcp://127.0.0.1:{port} --device-id 0 --ddp-backend {wrapper}"
        )
        how = spread if rank else "--update-freq 2"
        here("fairseq-train", data, *COMMON.split(), *flags.split(), *how.split())


def curves(log: str) -> dict:
    """Training -> (loss, gradient norm) of every update, as printed."""
    points, name = {}, None
    for line in log.splitlines():
        if line.startswith("== "):
            name = line[3:]
            points[name] = []
        elif "train_inner" in line and "{" in line:
            values = json.loads(line[line.index("{") :])
            points[name].append((float(values["loss"]), float(values["gnorm"])))
    return points


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The curves of the process alone, and of the first rank."""
    import forked
    from conftest import ROOT, preprocess, random_sentences, run, write_pairs

    folder = tmp_path_factory.mktemp("two")
    for split, count in (("train", 300), ("valid", 20)):
        write_pairs(folder, [(s, s) for s in random_sentences(count, count)], split)
    data = preprocess(folder, folder / "bin")
    run("nar-align", data, "-s", "src", "-t", "tgt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [str(forked.program("python")), str(Path(__file__).resolve()), str(data), rank, str(port)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ("", "0", "1")
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(log[-3000:] for log in outputs)
    return [curves(output) for output in outputs[:2]]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_are_one_with_update_freq_2(name, logs):
    alone, spread = (points[name] for points in logs)
    assert len(alone) == len(spread) == UPDATES and len(set(alone)) == UPDATES
    for one, other in zip(alone, spread):
        assert other == pytest.approx(one, rel=1e-3)  # printed with three digits


if __name__ == "__main__":
    train_all(*sys.argv[1:])
