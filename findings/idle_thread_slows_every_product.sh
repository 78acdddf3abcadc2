#!/usr/bin/env bash
# PyTorch 2.13.0: one more thread that has computed once, and only waits now, makes every small operation of all threads several
# times slower.
#
# PyTorch's operations are parallel by GNU's OpenMP (libgomp), which keeps a pool of threads for every thread that uses it. After
# an operation a pool's threads wait actively for the next one. But libgomp counts the threads of all pools in the process, and
# where they are more than the cores, it lets them sleep almost at once. It does not count who works: a thread that has computed
# one product and then waits on a queue keeps its pool, and its pool counts. From then on every operation of the main thread
# ends in a sleep and begins with a system call that ends one. Operations of less than a tenth of a millisecond, which decoding
# consists of, take several times as long; and nothing shows it, as no processor is busy.
# Such threads are a server's that loads a model in one thread and decodes in another, and those of other engines:
# CTranslate2's wheel brings a libgomp of its own, but PyTorch loads its copy with RTLD_GLOBAL, so that CTranslate2's
# symbols are found there and both count together. With both in one process a model's pass took 77 ms where it takes 27
# alone (two threads, two cores), and CTranslate2's took 71 instead of 47.
# What helps: let one thread do all the computing; end the other thread (its pool is given back); torch.set_num_threads(1) before
# the other thread computes; or another process.
#
# Seen are voluntary context switches, as they do not depend on what else the machine does.
# Output seen (Linux, x86-64, Python 3.11, two cores):
#   alone: 0.1 sleeps an operation
#   beside an idle thread that has computed: 4.0 sleeps an operation
#   the thread has ended: 0.1 sleeps an operation
#   beside an idle thread that has computed with one thread: 0.2 sleeps an operation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import os
from concurrent.futures import ThreadPoolExecutor

import torch

cores = len(os.sched_getaffinity(0))
assert cores > 1, "with one core threads always sleep"
torch.set_num_threads(cores)
x, weight = torch.ones(cores * 16, 512), torch.ones(512, 512)
OPERATIONS = 200


def compute(threads):
    torch.set_num_threads(threads)
    for _ in range(OPERATIONS):
        x @ weight


def sleeps():
    """Voluntary context switches of every thread."""
    counts = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as lines:
            counts[task] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
    return counts


def measure(where):
    compute(cores)
    before = sleeps()
    compute(cores)
    after = sleeps()
    found = sum(after[task] - before.get(task, 0) for task in after) / OPERATIONS
    print(f"{where}: {found:.1f} sleeps an operation")
    return found


alone = measure("alone")
with ThreadPoolExecutor(1) as thread:
    thread.submit(compute, cores).result()
    beside = measure("beside an idle thread that has computed")
after = measure("the thread has ended")
with ThreadPoolExecutor(1) as thread:
    thread.submit(compute, 1).result()
    beside_one = measure("beside an idle thread that has computed with one thread")
assert beside > 4 * max(alone, after, beside_one), "every operation sleeps"
PYTHON
