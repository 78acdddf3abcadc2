"""The rows of a comparison: systems that are loaded, decoded and timed side by side.

Those of this package and of fairseq share this process; another engine has one of its own. A row that fails keeps the
reason, and the others go on.
"""

import gc
import shlex
import statistics
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch

from nar_plugins.hub.errors import in_one_line
from nar_plugins.measure.exported import OnnxSystem
from nar_plugins.measure.quality import Quality
from nar_plugins.measure.rivals import CTranslate2System
from nar_plugins.measure.systems import SHARED, Output, System
from nar_plugins.measure.worker import Died, RemoteSystem, out_of_memory
from nar_plugins.models.flags import flag
from nar_plugins.modules.fast.refusals import BrokenWeights

ENGINES = {  # before a path: what decodes it
    "ct2:": CTranslate2System,  # a checkpoint
    "onnx:": OnnxSystem,  # an exported folder
}
WARM_UP = 8  # batches
PERCENTILES = (50, 90, 99)  # of a batch's latency


class Timing(NamedTuple):
    """A system's times at one batch size."""

    sentences: int
    seconds: List[List[float]]  # for every repeat, of every batch

    def speeds(self) -> List[float]:
        """Sentences per second in every repeat."""
        return [self.sentences / sum(batches) for batches in self.seconds]

    def speed(self) -> float:
        """Sentences per second, the median of the repeats."""
        return statistics.median(self.speeds())

    def quartiles(self) -> Tuple[float, float]:
        """The lower and the upper quartile of ``speeds``; of one repeat it is both."""
        speeds = self.speeds()
        if len(speeds) == 1:
            return speeds[0], speeds[0]
        lower, _, upper = statistics.quantiles(speeds, n=4, method="inclusive")
        return lower, upper

    def latency(self, percent: int) -> float:
        """A percentile of the seconds of a batch, over all batches of all repeats."""
        seconds = [second for batches in self.seconds for second in batches]
        return (
            seconds[0] if len(seconds) == 1 else statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]
        )


@dataclass
class Row:
    """A system and what was measured of it.

    Attributes:
        path, flags: its checkpoint and all its flags, as given.
        system: None where it could not be loaded, by no fault of an option.
        output, quality: None where the decoding failed.
        timings: by batch size; those that failed are missing.
        memory: bytes at the peak of a decoding (``memory.py``); None where it was not measured.
        errors: why something is missing.
    """

    name: str
    path: str
    flags: List[str]
    system: Optional[System] = None
    output: Optional[Output] = None
    quality: Optional[Quality] = None
    timings: Dict[int, Timing] = field(default_factory=dict)
    memory: Optional[int] = None
    errors: List[str] = field(default_factory=list)

    def speed(self, size: int) -> Optional[float]:
        """Sentences per second at a batch size; None where it was not measured."""
        timing = self.timings.get(size)
        return None if timing is None else timing.speed()


def load_rows(data: str, systems: Sequence[Sequence[str]], flags: str) -> List[Row]:
    """Load the systems of a comparison.

    Args:
        systems: (name, checkpoint, flags of ``fairseq-generate`` in one string) of each system.
        flags: flags of all systems, in one string.

    Raises:
        ValueError: a system cannot be loaded, or the systems would not decode the same text; the system is named. Lack
            of memory, weights that are NaN, or a process that dies, is the row's error, unless no system is loaded.
    """
    rows = []
    for name, path, system_flags in systems:
        with described(f"--system {name}: "):
            rows.append(Row(name, path, [*shlex.split(flags), *shlex.split(system_flags)]))
            kind, checkpoint = kind_of(path)
            kind.parse(checkpoint, data, rows[-1].flags)  # all flags are checked before the first checkpoint is loaded
    for row in rows:
        with described(f"--system {row.name}: "):
            try:
                kind, checkpoint = kind_of(row.path)
                start = System if kind is System else partial(RemoteSystem, kind)
                row.system = start(row.name, checkpoint, data, row.flags)
                row.system.check_lengths()
            except Exception as error:  # of any kind: PyTorch has several for lack of memory
                if not out_of_memory(error) and not isinstance(error, (Died, BrokenWeights)):
                    raise
                row.errors.append(in_one_line(error))
    loaded = [row.system for row in rows if row.system is not None]
    if not loaded:
        raise ValueError(f"--system {rows[0].name}: {rows[0].errors[0]}")
    check_comparable(loaded)
    return rows


@contextmanager
def closing(rows: Sequence[Row]):
    """End the processes of other engines afterwards."""
    try:
        yield
    finally:
        for row in rows:
            if row.system is not None:
                row.system.close()


def load(name: str, path: str, data: str, flags: Sequence[str]) -> System:
    """Load one system in this process."""
    kind, checkpoint = kind_of(path)
    system = kind(name, checkpoint, data, flags)
    system.check_lengths()
    return system


def kind_of(path: str) -> Tuple[Type[System], str]:
    """The class of a system, and its checkpoint without what names the class."""
    for prefix, kind in ENGINES.items():
        if path.startswith(prefix):
            return kind, path[len(prefix) :]
    return System, path


@contextmanager
def described(where: str):
    """Turn any error into a ValueError of one line that begins with ``where``; fairseq's are of many classes."""
    try:
        yield
    except Exception as error:
        raise ValueError(where + in_one_line(error)) from error


def check_comparable(systems: Sequence[System]) -> None:
    """Raise when a system decodes other sentences than the first, or turns tokens into text in another way."""
    first = systems[0]
    for system in systems[1:]:
        for name in SHARED:
            expected, actual = first.settings[name], system.settings[name]
            if expected != actual:
                option = flag("remove_bpe" if name == "post_process" else name)
                raise ValueError(
                    f"--system {system.name} has {option} {actual}, {first.name} has {expected}: all systems are "
                    "compared on the same text, so give it to all, in --flags"
                )


def attempt(row: Row, task: Callable, where: str = ""):
    """What a task of a row returns; None where it failed, with the reason in the row.

    Args:
        where: put before the reason.
    """
    try:
        with described(where):
            return task()
    except ValueError as error:
        row.errors.append(str(error))
    gc.collect()  # what the failed decoding held
    if row.system.cuda:
        torch.cuda.empty_cache()
    return None


def decode_rows(rows: Sequence[Row]) -> None:
    """Set the output of every row that is loaded."""
    for row in rows:
        if row.system is not None:
            row.output = attempt(row, row.system.output)


def time_rows(rows: Sequence[Row], size: int, sentences: int, repeats: int = 3) -> None:
    """Set the timing at one batch size of every row with an output.

    The systems alternate, so that slow phases of the machine affect all.
    """
    where = f"batch size {size}, "
    active = [(row, row.system.batches(size, sentences), []) for row in rows if row.output is not None]
    failed = {id(row) for row, batches, _ in active if attempt(row, warm_up(row.system, batches), where) is None}
    for _ in range(repeats):
        for row, batches, seconds in active:
            if id(row) not in failed:
                taken = attempt(row, lambda row=row, batches=batches: row.system.latencies(batches), where)
                if taken is None:
                    failed.add(id(row))
                else:
                    seconds.append(taken)
    for row, batches, seconds in active:
        if id(row) not in failed:
            row.timings[size] = Timing(sum(len(sample["id"]) for sample in batches), seconds)


def warm_up(system: System, batches: List[Dict]) -> Callable[[], List]:
    """The decoding before the timing."""
    return lambda: system.decode(batches[:WARM_UP])


def crossover(rows: Sequence[Row]) -> List[str]:
    """For every system that is not autoregressive: from which batch size an autoregressive one is faster.

    One line a system; none where there are not systems of both kinds.
    """
    timed = [row for row in rows if row.timings]
    autoregressive = [row for row in timed if row.system.autoregressive]
    lines = []
    for row in timed if autoregressive else ():
        if row.system.autoregressive:
            continue
        faster = {}  # batch size -> the fastest autoregressive system, where it is faster
        for size in sorted(row.timings):
            best = max(autoregressive, key=lambda other: other.speed(size) or 0)
            if (best.speed(size) or 0) > row.speed(size):
                faster[size] = best.name
        lines.append(f"{row.name}: {in_words(faster, sorted(row.timings))}")
    return lines


def in_words(faster: Dict[int, str], sizes: List[int]) -> str:
    """A sentence about the batch sizes at which an autoregressive system is faster, of all that were timed."""
    timed = f"(timed: {', '.join(map(str, sizes))})"
    if not faster:
        return f"faster than every autoregressive system at every batch size {timed}"
    first = min(faster)
    if len(faster) == len(sizes):
        return f"an autoregressive system ({faster[first]}) is faster at every batch size {timed}"
    if [size for size in sizes if size >= first] == list(faster):
        return f"from batch size {first} on an autoregressive system ({faster[first]}) is faster {timed}"
    return f"an autoregressive system is faster at batch sizes {', '.join(map(str, faster))} only {timed}"
