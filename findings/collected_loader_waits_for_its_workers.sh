#!/usr/bin/env bash
# PyTorch 2.13.0: a DataLoader's iterator that the garbage collector frees waits five seconds for every worker process.
#
# An iterator over a DataLoader with workers ends them when it is freed. Where its last reference goes, that takes
# milliseconds. Where it is part of a reference cycle (an object that holds the iterator and that the sampler or collate_fn holds,
# too), one expects the same, only later. But the collector runs the weak references' callbacks of a cycle before its
# destructors, and multiprocessing's queues use such callbacks: they are closed when the iterator wants to send its workers the
# word to end. Each worker then ends by itself, when its wait of five seconds for the next index is over, and the thread in
# which the collector happened to run waits for it. Until then every forgotten iterator keeps its processes.
# What helps: break the cycle (drop the iterator, and the DataLoader where persistent_workers=True) before the next one is made.
#
# Output seen (Linux, x86-64 CPU, Python 3.11):
#   last reference goes: 0.0 s, 0 workers left
#   in a cycle, before the collector runs: 1 worker left
#   in a cycle, the collector: 5 s, 0 workers left
#   in a cycle, two workers: 10 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import gc
import multiprocessing
import time

from torch.utils.data import DataLoader


class Holder:
    """What a training loop has: an object that makes an iterator and keeps it."""

    def __init__(self, workers, cycle):
        self.iterator = iter(DataLoader(range(8), num_workers=workers, multiprocessing_context="fork"))
        next(self.iterator)
        self.cycle = self if cycle else None


def workers():
    return len(multiprocessing.active_children())


def seconds(function):
    start = time.monotonic()
    function()
    return time.monotonic() - start


gc.disable()  # the collector runs where it is called, and nowhere else
holders = [Holder(1, cycle=False)]
took = seconds(holders.clear)
print(f"last reference goes: {took:.1f} s, {workers()} workers left")
assert took < 2 and workers() == 0

holders = [Holder(1, cycle=True)]
holders.clear()
print(f"in a cycle, before the collector runs: {workers()} worker left")
assert workers() == 1
took = seconds(gc.collect)
print(f"in a cycle, the collector: {took:.0f} s, {workers()} workers left")
assert 3 < took < 8 and workers() == 0

holders = [Holder(2, cycle=True)]
holders.clear()
took = seconds(gc.collect)
print(f"in a cycle, two workers: {took:.0f} s")
assert took > 3
PYTHON
