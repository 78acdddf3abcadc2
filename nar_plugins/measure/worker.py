"""Systems of other engines in a process of their own, beside the one in which PyTorch decodes.

In one process engines take from one another. CTranslate2 computes with the OpenMP that PyTorch has loaded (GNU's), in a
thread of its own. That OpenMP counts the threads of all its pools; where they are more than the cores, threads sleep at
the end of every operation, where they wait actively else, and to wake them takes longer than a small product. It stays
so for both engines while the second thread lives, though it has nothing to do
(``findings/idle_thread_slows_every_product.sh``).
"""

import logging
import os
import pickle
import signal
import time
import warnings
from argparse import Namespace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Dict, List, NamedTuple, Optional, Sequence, Type

import torch

from nar_plugins.hub.errors import in_one_line
from nar_plugins.measure.systems import System
from nar_plugins.modules.fast.refusals import BrokenWeights

SETTLING = 0.1  # seconds after which idle threads no longer wait actively, in either process


class Died(ValueError):
    """The process has ended before it answered."""


class Answer(NamedTuple):
    """What the process says to a call."""

    result: object = None
    error: Optional[str] = None  # in one line
    lacks_memory: bool = False  # the error is lack of memory
    broken_weights: bool = False  # the error is a ``BrokenWeights``


class Worker:
    """A process that has loaded a system and answers calls; it ends with this one, or by ``close``.

    Args:
        kind: the system's class. given: its arguments, and threads.

    Raises:
        ValueError: the system cannot be loaded; a ``MemoryError`` is its cause for lack of memory.
    """

    def __init__(self, kind: Type[System], *given):
        context = get_context("spawn")  # a copy of this process would have its threads' locks and no threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, kind, given), daemon=True)
        self.process.start()
        theirs.close()
        self.facts: Dict = self.answer()

    def call(self, name: str, *given):
        """What a method of ``serve`` returns.

        Raises:
            ValueError: its error, or the process has ended.
        """
        try:
            self.connection.send_bytes(pickle.dumps((name, given)))
        except OSError:
            raise Died(self.death()) from None
        return self.answer()

    def answer(self):
        """The result of the last call; raises as ``call``."""
        try:
            answer = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise Died(self.death()) from None
        if answer.broken_weights:
            raise BrokenWeights(answer.error)
        if answer.error is not None:
            raise ValueError(answer.error) from (MemoryError() if answer.lacks_memory else None)
        return answer.result

    def death(self) -> str:
        """How the process ended."""
        self.process.join()
        status = self.process.exitcode
        if status >= 0:
            return f"its process has ended, with exit status {status}"
        why = ", perhaps for lack of memory" * (status == -signal.SIGKILL)
        return f"its process was killed by {signal.Signals(-status).name}{why}"

    def close(self) -> None:
        """End the process."""
        self.connection.close()  # which it reads as the end
        self.process.join()


class RemoteSystem(System):
    """A system whose engine works in a process of its own; data and texts are read here.

    Args:
        kind: the class that decodes there, with as many threads as PyTorch has here.
        name, path, data, flags: see ``System``.

    Raises:
        ValueError: see ``Worker``.
    """

    def __init__(self, kind: Type[System], name: str, path: str, data: str, flags: Sequence[str] = ()):
        self.kind, self.given = kind, (name, path, data, list(flags))
        super().__init__(name, path, data, flags)

    def parse(self, path: str, data: str, flags: Sequence[str]) -> Namespace:
        """The flags, parsed as those of the class that decodes."""
        return self.kind.parse(path, data, flags)

    def load_models(self, path: str) -> list:
        """None in this process; the data are read as those of the class."""
        self.task.parallel = self.kind.parallel
        return []

    def start(self) -> None:
        """Start the process, and wait until it has loaded the system."""
        self.worker, self.generator = Worker(self.kind, *self.given, self.threads), None
        self.cuda, self.autoregressive = self.worker.facts["cuda"], self.worker.facts["autoregressive"]

    def max_positions(self) -> List[tuple]:
        return self.worker.facts["positions"]

    def weight_bytes(self) -> int:
        return self.worker.facts["weight_bytes"]

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        """The hypotheses of a batch, which is sent to the process."""
        return self.worker.call("hypotheses", sample)

    def latencies(self, batches: List[Dict]) -> List[float]:
        """Seconds of every batch, as the process measures them."""
        return self.worker.call("latencies", batches)

    def close(self) -> None:
        self.worker.close()


def serve(connection: Connection, kind: Type[System], given: tuple) -> None:
    """Load a system and answer calls until the other end of the connection is closed.

    PyTorch has one thread here, or its threads and the engine's would be too many for OpenMP.

    Args:
        given: the arguments of the class.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the user's; the other process ends this one
    os.dup2(2, 1)  # the table alone is printed
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    methods = {}

    def load() -> Dict:
        system = kind(*given)
        methods.update(hypotheses=system.hypotheses, latencies=lambda batches: settled(system, batches))
        return {
            "cuda": system.cuda,
            "autoregressive": system.autoregressive,
            "weight_bytes": system.weight_bytes(),
            "positions": system.max_positions(),
        }

    connection.send_bytes(pickle.dumps(attempted(load)))
    while methods:
        try:
            name, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(pickle.dumps(attempted(methods[name], *arguments)))


def attempted(function, *given) -> Answer:
    """What a function returns, or its error."""
    try:
        return Answer(function(*given))
    except Exception as error:  # noqa: BLE001  (it is raised in the process that asked)
        return Answer(None, in_one_line(error), out_of_memory(error), isinstance(error, BrokenWeights))


def settled(system: System, batches: List[Dict]) -> List[float]:
    """``latencies`` of a system, while threads of the other process sleep; those of this one sleep afterwards."""
    time.sleep(SETTLING)
    seconds = system.latencies(batches)
    time.sleep(SETTLING)
    return seconds


def out_of_memory(error: Optional[BaseException]) -> bool:
    """Whether an error, or what it was raised from, is lack of memory."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
