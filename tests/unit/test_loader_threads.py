"""A command that fails ends with its message: the threads that make batches end before Python does, and ranks are asked
for.
"""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, preprocess, random_sentences, write_pairs
from fairseq.data import iterators
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from in_process import here, refusal
from omegaconf import OmegaConf

from nar_plugins import compat
from nar_plugins.tasks.translation import NarTranslationConfig

FAILS = """
import torch, nar_plugins
from fairseq.data import iterators

class Batches:
    __len__ = lambda self: 10**6
    def __iter__(self):
        while True:
            yield torch.randn(400, 400) @ torch.randn(400, 400)

batches = iterators.BufferedIterator(10**6, Batches())
next(batches)
raise ValueError("the clear line")
"""


class Batches:
    """Batches without end, or with an error after some."""

    def __init__(self, fails_after=None):
        self.fails_after, self.made = fails_after, 0

    def __len__(self):
        return 10**6

    def __iter__(self):
        while self.made != self.fails_after:
            self.made += 1
            yield torch.zeros(1)
        raise ValueError("the data are broken")


def consumers():
    return [thread for thread in threading.enumerate() if isinstance(thread, iterators.BackgroundConsumer)]


@pytest.mark.parametrize("places", [2, 10**6])  # the thread waits for a place in the buffer, or never does
def test_threads_that_make_batches_end_when_they_are_stopped(places):
    compat.data.stop_loader_threads()  # of the tests before, if any
    source = Batches()
    batches = iterators.BufferedIterator(places, source)
    next(batches)
    assert len(consumers()) == 1
    started = time.monotonic()
    compat.data.stop_loader_threads()
    assert time.monotonic() - started < 5 and not consumers()
    made = source.made
    time.sleep(0.02)
    assert source.made == made


def test_a_thread_that_does_not_end_is_waited_for_no_longer_than_asked():
    leave = threading.Event()

    class Stuck(Batches):
        def __iter__(self):
            yield torch.zeros(1)
            leave.wait()

    next(iterators.BufferedIterator(2, Stuck()))
    started = time.monotonic()
    compat.data.stop_loader_threads(seconds=0.1)
    assert 0.1 <= time.monotonic() - started < 5 and consumers()
    leave.set()
    consumers()[0].join(5) if consumers() else None
    assert not consumers()


def test_an_epoch_leaves_no_process_behind(tmp_path, monkeypatch):
    """Left to the garbage collector, they would be one more in every epoch, each with the memory of the training."""
    for split, count in (("train", 20), ("valid", 4)):
        write_pairs(tmp_path, [(s, s) for s in random_sentences(count, 1)], split)
    data, counts = preprocess(tmp_path, tmp_path / "bin"), []
    begin_epoch = Trainer.begin_epoch

    def count(trainer, epoch):
        begin_epoch(trainer, epoch)
        counts.append(len(multiprocessing.active_children()))

    monkeypatch.setattr(Trainer, "begin_epoch", count)
    gc.disable()  # reference counts must do
    try:
        here(
            *("fairseq-train", data, "--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu"),
            *("--arch", "cmlm_tiny", "--share-all-embeddings", "--criterion", "nar_loss", "--optimizer", "adam"),
            *("--lr", "1e-3", "--max-tokens", "200", "--max-epoch", "4", "--num-workers", "1", "--no-save"),
            *("--valid-subset", "valid,train"),  # fairseq does not keep the batches of the second
        )
    finally:
        gc.enable()
    assert len(counts) == 4 and counts[-1] == counts[1]


def test_a_missing_option_keeps_nothing_of_those_who_ask_for_it():
    config = OmegaConf.structured(NarTranslationConfig())

    def ask():
        batches = Batches()
        assert getattr(config, "no_option", 3) == 3 and not hasattr(config, "no_other")
        return weakref.ref(batches)

    gc.disable()  # reference counts must do
    try:
        assert ask()() is None
    finally:
        gc.enable()
    with pytest.raises(AttributeError, match="no_option"):
        getattr(config, "no_option")  # noqa: B009  (without a default)


def test_batches_and_errors_come_as_before():
    batches = iterators.BufferedIterator(2, Batches(fails_after=3))
    assert [float(next(batches)) for _ in range(3)] == [0, 0, 0]
    with pytest.raises(ValueError, match="the data are broken"):
        next(batches)


def test_the_error_of_a_real_process_is_its_last_line():
    """Without the workaround: terminate called without an active exception, status 134."""
    done = subprocess.run([sys.executable, "-c", FAILS], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "ValueError: the clear line")


# -- several workers where there is no GPU -----------------------------------------------------------------------------


def test_two_workers_of_fairseq_train_on_cpus_are_refused_by_its_command(tmp_path):
    """Without the workaround: status 0, no update, no checkpoint where --distributed-init-method is given."""
    if torch.cuda.device_count():
        pytest.skip("with a GPU fairseq starts a worker")
    for method in ((), ("--distributed-init-method", "tcp://localhost:23456")):
        said = refusal(
            *("fairseq-train", tmp_path, "--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu"),
            *("--arch", "cmlm_tiny", "--criterion", "nar_loss", "--optimizer", "adam", "--max-tokens", "100"),
            *("--save-dir", tmp_path / "checkpoints", "--distributed-world-size", "2", *method),
        )
        assert said.startswith("fairseq starts one worker a GPU, and there is no GPU: start each rank by a command")
    assert not (tmp_path / "checkpoints").exists()


def config(size=2, method=None, no_spawn=False, tpu=False):
    workers = SimpleNamespace(
        distributed_world_size=size, distributed_init_method=method, distributed_no_spawn=no_spawn
    )
    return SimpleNamespace(distributed_training=workers, common=SimpleNamespace(tpu=tpu))


@pytest.mark.parametrize(
    "given",
    [dict(), dict(method="tcp://localhost:23456"), dict(size=1, method="tcp://localhost:23456"), dict(no_spawn=True)],
)
def test_workers_that_nobody_would_start_are_refused(given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    ran = []
    with pytest.raises(ValueError, match="there is no GPU: start each rank by a command of its own") as error:
        distributed_utils.call_main(config(**given), ran.append)
    said = str(error.value)
    assert "\n" not in said and not ran
    for part in (
        "--distributed-world-size 2",
        "--distributed-rank R",
        "--distributed-no-spawn",
        "tcp://HOST:PORT",
        "--distributed-backend gloo",
        "--ddp-backend legacy_ddp",
        "--device-id 0",
    ):
        assert part in said


@pytest.mark.parametrize("size", [1, 2])  # without --distributed-world-size every worker would train alone
def test_torchruns_workers_are_told_its_names(size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in dict(MASTER_ADDR="localhost", MASTER_PORT="1", WORLD_SIZE="2", RANK="0").items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(ValueError, match=r"--distributed-rank \$RANK .* env://"):
        distributed_utils.call_main(config(size), None)
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")
    compat.commands.check_workers(config(1))


@pytest.mark.parametrize(
    "gpus, given",
    [(0, dict(size=1)), (0, dict(method="tcp://localhost:1", no_spawn=True)), (2, dict()), (0, dict(tpu=True))],
)
def test_what_fairseq_can_start_is_left_to_it(gpus, given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    compat.commands.check_workers(config(**given))


def test_applying_the_workarounds_again_changes_nothing():
    before = distributed_utils.call_main, iterators.BackgroundConsumer
    compat.apply()
    assert (distributed_utils.call_main, iterators.BackgroundConsumer) == before
