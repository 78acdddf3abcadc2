"""Commands: their end, shards, earlier results, and workers on machines without a GPU."""

import argparse
import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Callable, List, Optional, TextIO

import fairseq_cli.generate
import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils

from nar_plugins.compat.replace import replaces

logger = logging.getLogger(__name__)

CALLS_AT_END: ContextVar[Optional[List[Callable[[], None]]]] = ContextVar("CALLS_AT_END", default=None)
OUTPUT: ContextVar[Optional[TextIO]] = ContextVar("OUTPUT", default=None)


@contextmanager
def command():
    """A run of one of fairseq's commands: what ``at_end_of_command`` was given meanwhile is called when it ends.

    fairseq tells nobody that a run is over: neither its tasks nor its generators. (No upstream issue.)
    """
    calls = []
    token = CALLS_AT_END.set(calls)
    try:
        yield
    finally:
        CALLS_AT_END.reset(token)
        for call in calls:
            call()


def at_end_of_command(call: Callable[[], None]) -> None:
    """Have it called when the running command of fairseq's ends; outside of one, never."""
    calls = CALLS_AT_END.get()
    if calls is not None:
        calls.append(call)


def keep_results_of_a_run_before() -> None:
    """Keep an earlier run's complete results when ``fairseq-generate --results-path`` fails.

    fairseq empties ``generate-SPLIT.txt`` before it checks its arguments. So a complete file is renamed to
    ``generate-SPLIT.before`` until a later run completes, however many runs are killed before that. It is renamed back
    when a run fails without a hypothesis. An empty ``.before`` marks that ``.txt`` is incomplete and that there was no
    earlier result. (No upstream issue.)
    """

    @replaces(fairseq_cli.generate, "main")
    def generate(main, cfg):
        if isinstance(cfg, argparse.Namespace):
            cfg = convert_namespace_to_omegaconf(cfg)
        with command(), results_of_a_run_before(cfg):
            return main(cfg)


def generate_the_shard_that_is_asked_for() -> None:
    """Let ``fairseq-generate`` decode the shard of ``--num-shards`` and ``--shard-id``, and no other.

    fairseq 0.12 parses both and reads the size and the rank of distributed training instead, so that every shard
    decodes all sentences. (No upstream issue.)
    """

    @replaces(fairseq_cli.generate, "_main")
    def generate(main, cfg, output_file):
        take_shard(cfg)
        token = OUTPUT.set(output_file)
        try:
            return main(cfg, output_file)
        finally:
            OUTPUT.reset(token)


def take_shard(cfg) -> None:
    """Write the shard to where fairseq reads it.

    Raises:
        ValueError: there is no such shard, or the workers of distributed training are given, too.
    """
    shards, shard, workers = cfg.dataset.num_shards, cfg.dataset.shard_id, cfg.distributed_training
    if shards < 1:
        raise ValueError(f"--num-shards {shards}: at least 1")
    if not 0 <= shard < shards:
        raise ValueError(f"--shard-id {shard}: with --num-shards {shards} it is 0 to {shards - 1}")
    if shards == 1:
        return
    if workers.distributed_world_size > 1:
        raise ValueError("--num-shards and --distributed-world-size: each divides the sentences: leave one out")
    workers.distributed_world_size, workers.distributed_rank = shards, shard


def refuse_shards(cfg, module: str) -> None:
    """Raise for a shard in a command that would take all sentences: every parser has the flags. (No upstream issue.)

    Args:
        module: of the command, such as ``fairseq_cli.interactive``.
    """
    if module not in ("fairseq_cli.train", "fairseq_cli.validate", "fairseq_cli.interactive"):
        return
    name = module.rpartition(".")[2]
    for flag, value, default in (("--num-shards", cfg.dataset.num_shards, 1), ("--shard-id", cfg.dataset.shard_id, 0)):
        if value != default:
            raise ValueError(
                f"{flag} {value}: fairseq-{name} has no shards, only fairseq-generate: leave it out"
                + (", and give each process its part of the input" if name == "interactive" else "")
            )


def output_of_generation() -> Optional[TextIO]:
    """Where the running ``fairseq-generate`` prints its hypotheses; None outside of one."""
    return OUTPUT.get()


@contextmanager
def results_of_a_run_before(cfg):
    """A run of ``fairseq-generate``; the result of the one before it stands aside until this one is complete."""
    folder = cfg.common_eval.results_path
    if folder is None:
        yield
        return
    results = Path(folder, f"generate-{cfg.dataset.gen_subset}.txt")
    before = results.with_suffix(".before")
    stand_aside(results, before)
    try:
        yield
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


def stand_aside(results: Path, before: Path) -> None:
    """Rename complete ``results`` to ``before``; if ``before`` exists, ``results`` is incomplete and is overwritten."""
    results.parent.mkdir(parents=True, exist_ok=True)
    if before.exists():
        if before.stat().st_size:
            logger.warning(
                f"{results} is a part, of a run that was stopped; the last complete result stays in {before} "
                "until this run is complete"
            )
    elif results.is_file():
        os.replace(results, before)
    else:
        before.touch()


def refuse_workers_without_gpu() -> None:
    """Raise for several workers on a machine without a GPU, and explain how to start each rank.

    fairseq starts one process per GPU. Without a GPU it starts none: the command ends at once as if it had succeeded,
    or with an assertion or a division by zero. Under torchrun without ``--distributed-world-size`` every worker trains
    alone, and all write the same checkpoints. (No upstream issue.)
    """

    @replaces(distributed_utils, "call_main")
    def call_main_with_workers(call_main, cfg, main, **kwargs):
        check_workers(cfg)
        refuse_shards(cfg, main.__module__)
        with command():
            return call_main(cfg, main, **kwargs)


def check_workers(cfg) -> None:
    """Raise when fairseq would start one process per GPU, and there is no GPU.

    Args:
        cfg: fairseq's, with ``common`` and ``distributed_training``.
    """
    workers = cfg.distributed_training
    torchrun = all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"))
    several = workers.distributed_world_size > 1 or workers.distributed_init_method is not None
    several |= torchrun and os.environ["WORLD_SIZE"] != "1"
    ranks = workers.distributed_no_spawn and workers.distributed_init_method is not None
    if not several or ranks or cfg.common.tpu or torch.cuda.device_count() > 0:
        return
    size, rank, method = max(2, workers.distributed_world_size), "R", "tcp://HOST:PORT"
    if torchrun:
        size, rank, method = "$WORLD_SIZE", "$RANK", "env://"
    raise ValueError(
        "fairseq starts one worker a GPU, and there is no GPU: start each rank by a command of its own, with "
        f"--distributed-world-size {size} --distributed-rank {rank} --distributed-no-spawn --distributed-init-method "
        f"{method} "
        "--distributed-backend gloo --ddp-backend legacy_ddp --device-id 0"
    )
