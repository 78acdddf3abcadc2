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
import types
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple


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
from fairseq.data import (  # noqa: E402
    BucketPadLengthDataset, LanguagePairDataset, bucket_pad_length_dataset, data_utils, indexed_dataset, iterators,
)  # fmt: skip
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.distributed import utils as distributed_utils  # noqa: E402
from fairseq.optim import FairseqOptimizer  # noqa: E402
from fairseq.tasks import TASK_DATACLASS_REGISTRY  # noqa: E402

from nar_plugins import safe_reader  # noqa: E402
from nar_plugins.safe_reader import CheckpointError  # noqa: E402

logger = logging.getLogger(__name__)

RUN = "checkpoint*.pt"  # what fairseq-train writes
REFUSALS = ("GLOBAL", "Can only ")  # in the safe unpickler's messages about an object, not about broken bytes


def apply() -> None:
    """Apply every workaround. fairseq's files stay as they are."""
    allow_namespace_in_checkpoints()
    read_checkpoints_safely()
    explain_unreadable_checkpoints()
    explain_foreign_optimizer_states()
    keep_results_of_a_run_before()
    bucket_lengths()
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


class SafeTorch(types.ModuleType):
    """``torch``, but for ``load``."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def load(file, *args, **kwargs):
        """The checkpoint on the CPU, where fairseq wants it."""
        return safe_reader.read(file)


def read_checkpoints_safely() -> None:
    """Let fairseq read what its own trainers write: metrics with NumPy's arrays, meters of older versions.

    PyTorch's safe unpickler refuses both. ``safe_reader`` tells how they are read instead; nothing is allowed for good, and
    nothing but fairseq's module for checkpoints reads in this way. (facebookresearch/fairseq#5603)
    """
    if not isinstance(checkpoint_utils.torch, SafeTorch):
        checkpoint_utils.torch = SafeTorch("torch")


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


def explain_foreign_optimizer_states() -> None:
    """Say which flag a training needs that goes on from a checkpoint of another task, without ``<mask>``.

    The model gets the row that it lacks; the optimizer's state does not, and PyTorch looks at its shapes in the first update
    only. (No upstream issue.)
    """
    load = FairseqOptimizer.load_state_dict
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_state_dict(self, *args, **kwargs):
        load(self, *args, **kwargs)
        for parameter, state in self.optimizer.state.items():
            for value in state.values():
                if torch.is_tensor(value) and value.dim() == parameter.dim() and value.shape != parameter.shape:
                    there, here = tuple(value.shape), tuple(parameter.shape)
                    raise ValueError(f"the checkpoint's optimizer has a state of {there} for a parameter that is {here} here, as "
                                     "of a model without <mask>: give --reset-optimizer")  # fmt: skip

    FairseqOptimizer.load_state_dict = load_state_dict


def keep_results_of_a_run_before() -> None:
    """Let ``fairseq-generate --results-path`` fail without losing the last complete result that an earlier run wrote there.

    fairseq empties ``generate-SPLIT.txt`` before it looks at a single argument. A complete one stands aside meanwhile, as
    ``generate-SPLIT.before``, until another is complete, however many runs are killed in between; it comes back when a run
    fails without a hypothesis. Where there was none, an empty ``.before`` tells that ``.txt`` is a part. (No upstream issue.)
    """
    main = fairseq_cli.generate.main
    if hasattr(main, "__wrapped__"):
        return

    @functools.wraps(main)
    def generate(cfg):
        if isinstance(cfg, argparse.Namespace):
            cfg = convert_namespace_to_omegaconf(cfg)
        folder = cfg.common_eval.results_path
        if folder is None:
            return main(cfg)
        results = Path(folder, f"generate-{cfg.dataset.gen_subset}.txt")
        before = results.with_suffix(".before")
        stand_aside(results, before)
        try:
            scorer = main(cfg)
        except BaseException:
            if not results.is_file() or b"\nH-" not in results.read_bytes():
                results.unlink(missing_ok=True)
                if before.stat().st_size:
                    os.replace(before, results)
                else:
                    before.unlink()
            elif before.stat().st_size:
                logger.warning(f"{results} is a part; the last complete result is {before}")
            raise
        before.unlink(missing_ok=True)
        return scorer

    fairseq_cli.generate.main = generate


def stand_aside(results: Path, before: Path) -> None:
    """Move a complete ``results`` to ``before``; where ``before`` exists, ``results`` is a part, and may be overwritten."""
    results.parent.mkdir(parents=True, exist_ok=True)
    if before.exists():
        if before.stat().st_size:
            logger.warning(f"{results} is a part, of a run that was stopped; the last complete result stays in {before} "
                           "until this run is complete")  # fmt: skip
    elif results.is_file():
        os.replace(results, before)
    else:
        before.touch()


def bucket_lengths() -> None:
    """Let ``--num-batch-buckets`` run under NumPy 2, which has neither ``percentile(interpolation=)`` nor ``np.compat``.

    What fairseq does there is written anew. (No upstream issue.)
    """
    init = LanguagePairDataset.__init__
    if hasattr(init, "__wrapped__"):
        return

    def get_buckets(sizes, num_buckets):
        """The upper bounds of the buckets: lengths that occur, at equal shares of the sentences."""
        shares = np.linspace(0, 100, num_buckets + 1)[1:]
        return np.unique(np.percentile(sizes, shares, method="lower"))

    @functools.wraps(init)
    def __init__(self, *args, num_buckets=0, **kwargs):
        init(self, *args, **kwargs)
        if num_buckets > 0:
            bucket(self, num_buckets)

    data_utils.get_buckets = bucket_pad_length_dataset.get_buckets = get_buckets
    LanguagePairDataset.__init__ = __init__


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


def check_checkpoint(path) -> None:
    """Raise ``CheckpointError`` unless ``path`` is a whole fairseq checkpoint that loads without running code from it.

    The tensors are mapped into memory, not read, so that the check costs milliseconds on a checkpoint of any size.
    """
    checked(path)


def checked(path, anything: bool = False, advise: bool = True) -> Dict:
    """The checkpoint at ``path``, its tensors mapped into memory; raises as ``check_checkpoint``.

    Args:
        anything: what cannot be loaded may be of any origin, and stand anywhere but in the model and its arguments.
        advise: let the message for a broken file name the checkpoint to take instead.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path that you gave")
    try:
        state = safe_load(path, zipfile.is_zipfile(path), anything)
    except Exception as error:  # the bytes of a foreign file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and any(words in str(error) for words in REFUSALS):
            way_out = "give another checkpoint"
            if safe_reader.refused_names(error) and not anything:
                way_out = f"nar-convert fairseq {path} --out FILE writes a copy without them"
            raise CheckpointError(
                f"{path} holds objects that could run code when loaded ({first_line(error)}): not loaded; {way_out}"
            ) from error
        advice = f"; {advice_for(path)}" if advise else ""
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint{advice}") from error
    if not isinstance(state, dict) or "model" not in state or not ({"args", "cfg"} & state.keys()):
        raise CheckpointError(
            f"{path} is no fairseq checkpoint (it lacks 'model' and 'cfg' or 'args'): "
            "convert it first (nar-convert) or give another file"
        )
    for part in ("model", "args", "cfg", *([] if anything else ["task_state"])):
        for name in safe_reader.not_loaded(state.get(part)):
            raise CheckpointError(f"{path} holds a {name} in its '{part}', where only plain data can be used: not loaded")
    return state


def safe_load(path, mmap: bool = False, anything: bool = False):
    """A checkpoint on the CPU, read without running code from it (``safe_reader.read``)."""
    return safe_reader.read(path, mmap, anything)


def first_line(error: BaseException) -> str:
    """The part of PyTorch's long message that names the refused object."""
    text = str(error)
    for line in text.splitlines():
        if "Unsupported" in line or any(words in line for words in REFUSALS):
            return line.split("WeightsUnpickler error:")[-1].strip().split(". ")[0]
    return text.splitlines()[0] if text else type(error).__name__


def advice_for(path: Path) -> str:
    """What the message for a truncated or foreign file says of the checkpoints beside it: the newest whole one, if it fits."""
    beside = whole_checkpoints(path)
    if not beside:
        return "no whole checkpoint stands beside it"
    newest = beside[0][0]
    if not path.match(RUN) or any(shapes != beside[0][1] for _, shapes in beside):
        return f"whole checkpoints stand beside it ({newest.name}), but nothing tells which of them are of the same model"
    return (f"the newest whole checkpoint is {newest}: give it instead (to go on with a training: --restore-file), or copy it "
            f"over {path.name}")  # fmt: skip


def whole_checkpoints(path: Path) -> List[Tuple[Path, Dict]]:
    """The checkpoints beside ``path`` that fairseq-train may have written there and that load, with the shapes of their
    parameters by name; the newest first."""
    whole = []
    for other in sorted(path.parent.glob(RUN), key=os.path.getmtime, reverse=True):
        if other == path:
            continue
        try:
            model = checked(other, advise=False)["model"]
            whole.append((other, {name: tuple(value.shape) for name, value in model.items()}))
        except (CheckpointError, AttributeError):  # a model that is no table of tensors is none of fairseq's
            continue
    return whole
