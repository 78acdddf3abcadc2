"""Another engine's process: calls are answered there, and whatever happens to it is an error here."""

import os
import signal

import pytest
import torch
from rival_double import Alone

from nar_plugins.measure.worker import Died, Worker, out_of_memory


@pytest.fixture(scope="module")
def worker():
    made = Worker(Alone, "fine")
    yield made
    made.close()
    assert made.process.exitcode == 0


def test_calls_are_answered_by_another_process_with_one_thread_of_pytorch(worker, capfd):
    assert worker.facts == {"cuda": False, "autoregressive": True, "weight_bytes": 7, "positions": [(1024, 1024)]}
    sample = {"id": torch.tensor([3])}
    found, process, threads = worker.call("hypotheses", sample)
    assert found == sample and process == worker.process.pid != os.getpid() and threads == 1
    assert worker.call("latencies", [])[0] >= 0.01
    assert capfd.readouterr().out == ""


def test_errors_come_back_in_one_line_and_the_process_goes_on(worker):
    with pytest.raises(ValueError, match="^IndexError: list index out of range$") as caught:
        worker.call("hypotheses", "error")
    assert not out_of_memory(caught.value) and not isinstance(caught.value, Died)
    with pytest.raises(ValueError, match="^OutOfMemoryError: a GPU's$") as caught:
        worker.call("hypotheses", "memory")
    assert out_of_memory(caught.value)
    assert worker.call("hypotheses", 5)[0] == 5


def test_lack_of_memory_while_loading_is_known_as_such():
    with pytest.raises(ValueError, match="^MemoryError: too large$") as caught:
        Worker(Alone, "lacks memory")
    assert out_of_memory(caught.value)


def test_a_process_that_is_killed_is_named_in_every_later_call():
    killed = Worker(Alone, "fine")
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.join()
    for _ in range(2):
        with pytest.raises(Died, match="^its process was killed by SIGKILL, perhaps for lack of memory$"):
            killed.call("hypotheses", 5)
    killed.close()
