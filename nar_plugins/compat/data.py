"""Data: batches of few shapes under NumPy 2, the format before ``mmap``, threads that end before Python does."""

import atexit
import itertools
import logging
import queue
import threading
import time
from pathlib import Path

import numpy as np
import torch
from fairseq.data import (
    BucketPadLengthDataset,
    LanguagePairDataset,
    bucket_pad_length_dataset,
    data_utils,
    indexed_dataset,
    iterators,
)

from nar_plugins.compat.replace import replaces

logger = logging.getLogger(__name__)


def bucket_lengths() -> None:
    """Let ``--num-batch-buckets`` run under NumPy 2, which has neither ``percentile(interpolation=)`` nor
    ``np.compat``.

    What fairseq does there is written anew. (No upstream issue.)
    """

    def get_buckets(sizes, num_buckets):
        """The upper bounds of the buckets: lengths that occur, at equal shares of the sentences."""
        shares = np.linspace(0, 100, num_buckets + 1)[1:]
        return np.unique(np.percentile(sizes, shares, method="lower"))

    @replaces(LanguagePairDataset, "__init__")
    def __init__(init, self, *args, num_buckets=0, **kwargs):
        init(self, *args, **kwargs)
        if num_buckets > 0:
            bucket(self, num_buckets)

    data_utils.get_buckets = bucket_pad_length_dataset.get_buckets = get_buckets


def bucket(dataset: LanguagePairDataset, count: int) -> None:
    """Pad the sides of a data set to ``count`` lengths each, and give it the batch shapes that follow."""
    sides = {"src": (dataset.src_dict, dataset.left_pad_source), "tgt": (dataset.tgt_dict, dataset.left_pad_target)}
    for side, (dictionary, left) in sides.items():
        lines = getattr(dataset, side)
        if lines is None:
            continue
        padded = BucketPadLengthDataset(lines, getattr(dataset, f"{side}_sizes"), count, dictionary.pad(), left)
        setattr(dataset, side, padded)
        setattr(dataset, f"{side}_sizes", padded.sizes)
        logger.info(f"--num-batch-buckets: {side} lengths {padded.buckets.tolist()}")
    dataset.bucketed_num_tokens = dataset.num_tokens_vec(np.arange(len(dataset.src)))
    dataset.buckets = [(None, tokens) for tokens in np.unique(dataset.bucketed_num_tokens)]


def read_older_data() -> None:
    """Read data in the format that fairseq had before ``mmap`` (``fairseq-preprocess --dataset-impl lazy`` or
    ``cached``).

    fairseq opens them as 'cached', of which every sentence must be fetched first, and nothing in it does that any more:
    a KeyError. Its 'lazy' keeps a file open, which the workers of a data loader would share, and takes what is missing
    of a short file from memory as it is. Both flags mean a ``MappedDataset`` here. (facebookresearch/fairseq#3214,
    #3167)
    """

    @replaces(indexed_dataset, "make_dataset")
    def make_dataset(make, path, impl, fix_lua_indexing=False, dictionary=None):
        if impl in ("lazy", "cached") and indexed_dataset.IndexedDataset.exists(path):
            return MappedDataset(path, fix_lua_indexing)
        return make(path, impl, fix_lua_indexing, dictionary)


class MappedDataset(indexed_dataset.IndexedDataset):
    """fairseq's older format, mapped into memory as ``mmap`` is: item i is (tokens,) int64.

    Raises:
        ValueError: one of the two files is shorter than the index says.
    """

    def __init__(self, path: str, fix_lua_indexing: bool = False):
        super().__init__(path, fix_lua_indexing)
        index, data = Path(f"{path}.idx"), Path(f"{path}.bin")
        if index.stat().st_size != 8 * (6 + 2 * (self._len + 1) + self.s):
            raise ValueError(f"{index} is cut short")
        self.tokens = np.memmap(data, self.dtype, "r")
        if len(self.tokens) < self.data_offsets[-1]:
            raise ValueError(f"{data} is cut short")

    def __getitem__(self, i: int) -> torch.Tensor:
        self.check_index(i)
        tokens = self.tokens[self.data_offsets[i] : self.data_offsets[i + 1]].astype(np.int64)
        return torch.from_numpy(tokens) - int(self.fix_lua_indexing)

    def __reduce__(self):  # a process that is not forked maps the file itself
        return type(self), (self.path, self.fix_lua_indexing)


class StoppableConsumer(iterators.BackgroundConsumer):
    """fairseq's thread that fills the buffer of batches; it can be asked to end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stopped = threading.Event()

    def run(self):
        self._source = itertools.takewhile(lambda batch: not self.stopped.is_set(), self._source)
        super().run()

    def stop(self, seconds: float) -> None:
        """End and join the thread, or give up after so many seconds: a batch may take long to make."""
        self.stopped.set()
        deadline = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < deadline:
            try:
                while True:  # it may be waiting for a place in the buffer
                    self._queue.get_nowait()
            except queue.Empty:
                self.join(0.01)


def stop_loader_threads_at_exit() -> None:
    """Let a command that fails end with its message, and with status 1.

    fairseq's thread that makes batches ahead is a daemon. While it is inside PyTorch's C++ when Python shuts down, the
    process aborts: ``terminate called without an active exception`` is then the last line, and the status 134. This
        holds
    for a command that ends well in the middle of an epoch, too. (python/cpython#87135)
    """
    if iterators.BackgroundConsumer is StoppableConsumer:
        return
    iterators.BackgroundConsumer = StoppableConsumer
    atexit.register(stop_loader_threads)


def stop_loader_threads(seconds: float = 10.0) -> None:
    """End the threads that still make batches; each gets so many seconds."""
    for thread in threading.enumerate():
        if isinstance(thread, StoppableConsumer):
            thread.stop(seconds)
