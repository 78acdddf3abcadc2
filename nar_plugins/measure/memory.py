"""The peak memory of a system's decoding, measured in a process of its own."""

import gc
import logging
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Sequence

import torch

from nar_plugins.measure.machine import memory, restart_peak
from nar_plugins.measure.speed import Row, attempt, load

BATCHES = 8  # that are decoded


def measure_memory(rows: Sequence[Row], data: str, size: int) -> None:
    """Set ``memory`` of every row with an output, at one batch size."""
    for row in rows:
        if row.output is not None:
            job = (row.name, row.path, data, row.flags, size, torch.get_num_threads())
            row.memory = attempt(row, lambda job=job: in_a_process(*job), "memory: ")


def in_a_process(*job) -> int:
    """``peak_memory`` in a new process.

    Raises:
        ValueError: it failed there, or the process was killed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(peak_memory, *job).result()
        except BrokenProcessPool:
            raise ValueError("the process was killed, perhaps for lack of memory") from None


def peak_memory(name: str, path: str, data: str, flags: Sequence[str], size: int, threads: int) -> int:
    """Bytes at the peak of a decoding, the model's included, beyond what was resident before the model was loaded.

    It is called in a process of its own, whose logs are not wanted. The batches with the most tokens are decoded. What
    loading itself takes does not count. On a GPU it is the memory of PyTorch's tensors there.
    """
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    before = memory("VmRSS")
    system = load(name, path, data, flags)
    batches = sorted(system.batches(size), key=lambda sample: sample["net_input"]["src_tokens"].numel())[-BATCHES:]
    gc.collect()
    restart_peak()
    if system.cuda:
        torch.cuda.reset_peak_memory_stats()
    system.decode(batches)
    return torch.cuda.max_memory_allocated() if system.cuda else memory("VmHWM") - before
