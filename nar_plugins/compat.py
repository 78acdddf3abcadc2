"""What today's Python and PyTorch need from fairseq: one function a workaround, each with the upstream issue it answers.

Nothing else in this package mentions versions or fairseq's defects of platform. ``apply`` is called once, when the package
is imported; every function can be called again without harm.
"""
import argparse
import atexit
import dataclasses
import functools
import itertools
import logging
import os
import pickle
import queue
import sys
import threading
import time
import zipfile
from pathlib import Path


def leave_out_advice_on_speech() -> None:
    """Let no command begin with "Please install tensorboardX", which fairseq's text-to-speech says when it is imported.

    fairseq's commands import it before they read ``--user-dir``: there the line cannot be stopped. (No upstream issue.)
    """
    logging.getLogger("fairseq.tasks.text_to_speech").addFilter(no_tensorboard)  # the same one is added once only


def no_tensorboard(record: logging.LogRecord) -> bool:
    return "tensorboardX" not in record.getMessage()


leave_out_advice_on_speech()  # before the first import of fairseq

import fairseq_cli.generate  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from fairseq import checkpoint_utils, options  # noqa: E402
from fairseq.data import indexed_dataset, iterators  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.distributed import utils as distributed_utils  # noqa: E402
from fairseq.tasks import TASK_DATACLASS_REGISTRY  # noqa: E402

logger = logging.getLogger(__name__)


def apply() -> None:
    """Apply every workaround. fairseq's files stay as they are."""
    allow_namespace_in_checkpoints()
    explain_unreadable_checkpoints()
    keep_results_of_a_run_before()
    read_older_data()
    show_all_flags_in_help()
    refuse_workers_without_gpu()
    stop_loader_threads_at_exit()


def allow_namespace_in_checkpoints() -> None:
    """Let fairseq's checkpoints load while PyTorch still refuses everything that could run code.

    Since PyTorch 2.6 ``torch.load`` reads tensors and plain containers only; fairseq keeps its arguments in an
    ``argparse.Namespace``, a plain container too. It alone is allowed; ``weights_only`` stays on.
    (facebookresearch/fairseq#5610)
    """
    torch.serialization.add_safe_globals([argparse.Namespace])


def explain_unreadable_checkpoints() -> None:
    """Turn PyTorch's error for a truncated, foreign or unsafe checkpoint into one line that says what to do.

    fairseq copies ``checkpoint_last.pt`` without an atomic rename, so a process killed in that moment leaves it short;
    the message then names the newest whole checkpoint beside it. (facebookresearch/fairseq#2684)
    """
    load = checkpoint_utils.load_checkpoint_to_cpu
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, *args, **kwargs):
        check_checkpoint(path)
        return load(path, *args, **kwargs)

    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def keep_results_of_a_run_before() -> None:
    """Let ``fairseq-generate --results-path`` fail without losing what an earlier run wrote there.

    fairseq empties ``generate-SPLIT.txt`` before it looks at a single argument. It stands aside meanwhile, as
    ``generate-SPLIT.before``, and comes back when the new run fails without a hypothesis. (No upstream issue.)
    """
    main = fairseq_cli.generate.main
    if hasattr(main, "__wrapped__"):
        return

    @functools.wraps(main)
    def generate(cfg):
        if isinstance(cfg, argparse.Namespace):
            cfg = convert_namespace_to_omegaconf(cfg)
        folder = cfg.common_eval.results_path
        results = Path(folder or "", f"generate-{cfg.dataset.gen_subset}.txt")
        if folder is None or not results.is_file():
            return main(cfg)
        before = results.with_suffix(".before")
        os.replace(results, before)
        try:
            scorer = main(cfg)
        except BaseException:
            if not results.is_file() or b"\nH-" not in results.read_bytes():
                os.replace(before, results)
            raise
        before.unlink()
        return scorer

    fairseq_cli.generate.main = generate


def read_older_data() -> None:
    """Read data in the format that fairseq had before ``mmap`` (``fairseq-preprocess --dataset-impl lazy`` or ``cached``).

    fairseq opens them as 'cached', of which every sentence must be fetched first, and nothing in it does that any more: a
    KeyError. Its 'lazy' keeps a file open, which the workers of a data loader would share, and takes what is missing of a
    short file from memory as it is. Both flags mean a ``MappedDataset`` here. (facebookresearch/fairseq#3214, #3167)
    """
    make = indexed_dataset.make_dataset
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def make_dataset(path, impl, fix_lua_indexing=False, dictionary=None):
        if impl in ("lazy", "cached") and indexed_dataset.IndexedDataset.exists(path):
            return MappedDataset(path, fix_lua_indexing)
        return make(path, impl, fix_lua_indexing, dictionary)

    indexed_dataset.make_dataset = make_dataset


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


def show_all_flags_in_help() -> None:
    """Let ``--help`` show the flags of the task, the architecture, the criterion and what else the command line chooses.

    fairseq answers it in the first of its two readings of the command line, when it knows only its own flags. A missing
    ``--task`` is named here, too. (No upstream issue.)
    """
    parse = options.parse_args_and_arch
    if hasattr(parse, "__wrapped__"):
        return

    @functools.wraps(parse)
    def parse_args_and_arch(parser, input_args=None, parse_known=False, suppress_defaults=False, modify_parser=None):
        given = list(sys.argv[1:] if input_args is None else input_args)
        words = given[: given.index("--")] if "--" in given else given
        if not {"-h", "--help"} & set(words):
            check_task_of_flags(parser, words)
            return parse(parser, input_args, parse_known, suppress_defaults, modify_parser)
        readings = []

        def modify(parser):
            if modify_parser is not None:
                modify_parser(parser)
            readings.append(parser)
            if len(readings) == 1:  # before the first reading
                prepare_help(parser)
            else:  # before the second one, with all flags
                parser.print_help()
                parser.exit()

        parse(parser, [word for word in given if word not in ("-h", "--help")], modify_parser=modify)

    options.parse_args_and_arch = parse_args_and_arch


def check_task_of_flags(parser: argparse.ArgumentParser, words: list) -> None:
    """Raise when a command line lacks the ``--task`` that it needs.

    ``fairseq-validate`` has no default and dies with ``KeyError: None``; in the other commands the flags of this package's
    generators are unknown under fairseq's default, and argparse says no more than that.

    Args:
        parser: before its first reading. words: the command line.
    """
    if "--task" not in parser._option_string_actions:
        return
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--task", default=parser.get_default("task"))
    try:
        task = reader.parse_known_args(words)[0].task
    except SystemExit:  # --task without its name, as argparse has said
        raise ValueError("--task has no name behind it: --task nar_translation is this package's") from None
    if task is None:
        raise ValueError("--task is missing, and has no default here: give the one that the checkpoint was trained under, such as "
                         "--task nar_translation")  # fmt: skip
    if task not in ("translation", "translation_lev"):
        return
    theirs = {f.name for f in dataclasses.fields(TASK_DATACLASS_REGISTRY[task])}
    options = dataclasses.fields(TASK_DATACLASS_REGISTRY["nar_translation"])
    ours = {f.name for f in options if not str(f.default).startswith("${")} - theirs  # what refers to other flags is none
    flags = {f"--{name.replace('_', '-')}" for name in ours} - set(parser._option_string_actions)
    for flag in (word.split("=")[0] for word in words):
        if flag in flags:
            raise ValueError(f"{flag} is a flag of --task nar_translation, and this is {task}: give --task nar_translation")


def prepare_help(parser: argparse.ArgumentParser) -> None:
    """Let the first reading succeed, with the task of this package where none is given and no architecture in place of none.

    The page ends with what it shows, and what shows the rest.
    """
    if parser.get_default("task") in (None, "translation"):
        parser.set_defaults(task="nar_translation")
    for action in parser._actions:  # set_defaults would give every command an --arch
        action.required = False
        if action.dest == "arch" and action.default in (None, "wav2vec2"):  # fairseq-train's and fairseq-generate's
            action.default = argparse.SUPPRESS
    if parser.epilog is None:
        parser.epilog = (
            "Shown are the flags of the --task (nar_translation, if none is given), the --arch and the --criterion of this "
            "command line. nar-flags lists all that nar_plugins adds, by task, generator, model and criterion."
        )


def refuse_workers_without_gpu() -> None:
    """Let a command with several workers fail, saying how ranks are started, where fairseq would start none of them.

    fairseq starts one process a GPU: without any GPU none, and the command ends at once as if all were done, or with an
    assertion or a division by zero on the way there. (No upstream issue.)
    """
    call_main = distributed_utils.call_main
    if hasattr(call_main, "__wrapped__"):
        return

    @functools.wraps(call_main)
    def call_main_with_workers(cfg, main, **kwargs):
        check_workers(cfg)
        return call_main(cfg, main, **kwargs)

    distributed_utils.call_main = call_main_with_workers


def check_workers(cfg) -> None:
    """Raise when fairseq would start a process a GPU, and there is none.

    Args:
        cfg: fairseq's, with ``common`` and ``distributed_training``.
    """
    workers = cfg.distributed_training
    several = workers.distributed_world_size > 1 or workers.distributed_init_method is not None
    ranks = workers.distributed_no_spawn and workers.distributed_init_method is not None
    if not several or ranks or cfg.common.tpu or torch.cuda.device_count() > 0:
        return
    size, rank, method = max(2, workers.distributed_world_size), "R", "tcp://HOST:PORT"
    if all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")):  # torchrun's
        size, rank, method = "$WORLD_SIZE", "$RANK", "env://"
    raise ValueError(
        "fairseq starts one worker a GPU, and there is no GPU: start each rank by a command of its own, with "
        f"--distributed-world-size {size} --distributed-rank {rank} --distributed-no-spawn --distributed-init-method {method} "
        "--distributed-backend gloo --ddp-backend legacy_ddp --device-id 0"
    )


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
    process aborts: ``terminate called without an active exception`` is then the last line, and the status 134. This holds
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


class CheckpointError(ValueError):
    """A checkpoint file that cannot or must not be loaded; the message names the file and the way out."""


def check_checkpoint(path) -> None:
    """Raise ``CheckpointError`` unless ``path`` is a whole fairseq checkpoint that loads without running code from it.

    The tensors are mapped into memory, not read, so that the check costs milliseconds on a checkpoint of any size.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path that you gave")
    try:
        state = safe_load(path, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the bytes of a foreign file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds objects that could run code when loaded ({first_line(error)}): not loaded; "
                "save it again with tensors, numbers, strings and argparse.Namespace only"
            ) from error
        raise CheckpointError(unreadable(path)) from error
    if not isinstance(state, dict) or "model" not in state or not ({"args", "cfg"} & state.keys()):
        raise CheckpointError(
            f"{path} is no fairseq checkpoint (it lacks 'model' and 'cfg' or 'args'): "
            "convert it first (nar-convert) or give another file"
        )


def safe_load(path, mmap: bool = False):
    """``torch.load`` on the CPU with PyTorch's safe unpickler, whatever the default of the installed version is."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def first_line(error: BaseException) -> str:
    """The part of PyTorch's long message that names the refused object."""
    text = str(error)
    for line in text.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.split("WeightsUnpickler error:")[-1].strip().split(". ")[0]
    return text.splitlines()[0] if text else type(error).__name__


def unreadable(path: Path) -> str:
    """The message for a truncated or foreign file, with the newest whole checkpoint beside it where there is one."""
    newest = newest_whole_checkpoint(path.parent, besides=path)
    advice = (
        f"the newest whole checkpoint is {newest}: copy it over {path.name}, or give it with --restore-file"
        if newest
        else "no whole checkpoint stands beside it"
    )
    return f"{path} is truncated or not a PyTorch checkpoint; {advice}"


def newest_whole_checkpoint(folder: Path, besides: Path):
    """The most recently written ``*.pt`` in ``folder`` whose zip directory is complete, or None."""
    candidates = [p for p in folder.glob("*.pt") if p != besides and zipfile.is_zipfile(p)]
    return max(candidates, key=os.path.getmtime, default=None)
