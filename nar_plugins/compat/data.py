"""Data: length buckets under NumPy 2, formats before ``mmap``, what outlives its use, and loader threads at exit."""

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
from omegaconf import DictConfig

from nar_plugins.compat.replace import replaces

logger = logging.getLogger(__name__)


def bucket_lengths() -> None:
    """Let ``--num-batch-buckets`` run under NumPy 2, which has neither ``percentile(interpolation=)`` nor
    ``np.compat``.

    It replaces fairseq's implementation. (No upstream issue.)
    """

    def get_buckets(sizes, num_buckets):
        """The upper bounds of buckets with about the same number of sentences."""
        shares = np.linspace(0, 100, num_buckets + 1)[1:]
        return np.unique(np.percentile(sizes, shares, method="lower"))

    @replaces(LanguagePairDataset, "__init__")
    def __init__(init, self, *args, num_buckets=0, **kwargs):
        init(self, *args, **kwargs)
        if num_buckets > 0:
            bucket(self, num_buckets)

    data_utils.get_buckets = bucket_pad_length_dataset.get_buckets = get_buckets


def bucket(dataset: LanguagePairDataset, count: int) -> None:
    """Pad each side of a data set to ``count`` different lengths, and set the resulting batch shapes."""
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

    fairseq opens them as 'cached', which must be prefetched; nothing in fairseq does that any more, so that it raises a
    KeyError. Its 'lazy' keeps a file open, which the workers of a data loader would share, and fills the missing end of
    a truncated file with uninitialised memory. Here both values open a ``MappedDataset``.
    (facebookresearch/fairseq#3214, #3167)
    """

    @replaces(indexed_dataset, "make_dataset")
    def make_dataset(make, path, impl, fix_lua_indexing=False, dictionary=None):
        if impl in ("lazy", "cached") and indexed_dataset.IndexedDataset.exists(path):
            return MappedDataset(path, fix_lua_indexing)
        return make(path, impl, fix_lua_indexing, dictionary)


class MappedDataset(indexed_dataset.IndexedDataset):
    """fairseq's older format, memory-mapped like ``mmap``: item i is (tokens,) int64.

    Raises:
        ValueError: one of the two files is truncated.
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

    def __reduce__(self):  # a spawned process maps the file itself
        return type(self), (self.path, self.fix_lua_indexing)


def keep_no_frames_of_missing_options() -> None:
    """Let ``getattr(config, name, default)`` free what the calling functions hold.

    OmegaConf's error for a missing option and the frames in which it was raised refer to one another. So everything
    that the calling functions hold stays until the garbage collector runs. fairseq's ``get_batch_iterator`` asks for
    three options that no task has: in a validation on the training data, the epoch and the validation were kept, each
    with its worker process. (omry/omegaconf#1295, #1314)
    """

    @replaces(DictConfig, "__getattr__")
    def __getattr__(get, self, name):
        try:
            return get(self, name)
        except AttributeError as error:
            cause = error
            while cause is not None:
                cause.__traceback__, cause = None, cause.__context__
            raise error  # a bare raise would bring the frames back on Python 3.10 and earlier


class StoppableConsumer(iterators.BackgroundConsumer):
    """fairseq's thread that buffers batches, with a way to stop it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stopped = threading.Event()

    def run(self):
        stopped = self.stopped  # not self: the source would keep it alive, and the workers of the data loader
        self._source = itertools.takewhile(lambda batch: not stopped.is_set(), self._source)
        super().run()

    def stop(self, seconds: float) -> None:
        """Stop and join the thread; give up after ``seconds``, because making a batch may take long."""
        self.stopped.set()
        deadline = time.monotonic() + seconds
        while self.is_alive() and time.monotonic() < deadline:
            try:
                while True:  # it may wait for space in the buffer
                    self._queue.get_nowait()
            except queue.Empty:
                self.join(0.01)


def stop_loader_threads_at_exit() -> None:
    """Let a command that fails end with its own message and status 1.

    fairseq's thread that buffers batches is a daemon. If it runs PyTorch's C++ code when Python shuts down, the process
    aborts with ``terminate called without an active exception`` and status 134. This also affects a command that
    succeeds in the middle of an epoch. (python/cpython#87135)
    """
    if iterators.BackgroundConsumer is StoppableConsumer:
        return
    iterators.BackgroundConsumer = StoppableConsumer
    atexit.register(stop_loader_threads)


def stop_loader_threads(seconds: float = 10.0) -> None:
    """Stop the threads that still make batches; wait up to ``seconds`` for each."""
    for thread in threading.enumerate():
        if isinstance(thread, StoppableConsumer):
            thread.stop(seconds)
