"""Commands: what they print of their flags, what they keep of earlier results, which workers they start."""

import argparse
import dataclasses
import logging
import os
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Callable, List, Optional

import fairseq_cli.generate
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from nar_plugins.compat.replace import replaces

logger = logging.getLogger(__name__)

CALLS_AT_END: ContextVar[Optional[List[Callable[[], None]]]] = ContextVar("CALLS_AT_END", default=None)


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
    """Let ``fairseq-generate --results-path`` fail without losing the last complete result that an earlier run wrote
    there.

    fairseq empties ``generate-SPLIT.txt`` before it looks at a single argument. A complete one stands aside meanwhile,
    as ``generate-SPLIT.before``, until another is complete, however many runs are killed in between; it comes back when
    a run fails without a hypothesis. Where there was none, an empty ``.before`` tells that ``.txt`` is a part. (No
    upstream issue.)
    """

    @replaces(fairseq_cli.generate, "main")
    def generate(main, cfg):
        if isinstance(cfg, argparse.Namespace):
            cfg = convert_namespace_to_omegaconf(cfg)
        with command(), results_of_a_run_before(cfg):
            return main(cfg)


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
    """Move a complete ``results`` to ``before``; where ``before`` exists, ``results`` is a part, and may be
    overwritten.
    """
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


def show_all_flags_in_help() -> None:
    """Let ``--help`` show the flags of the task, the architecture, the criterion and what else the command line
    chooses.

    fairseq answers it in the first of its two readings of the command line, when it knows only its own flags. A missing
    ``--task`` is named here, too. (No upstream issue.)
    """

    @replaces(options, "parse_args_and_arch")
    def parse_args_and_arch(
        parse, parser, input_args=None, parse_known=False, suppress_defaults=False, modify_parser=None
    ):
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


def check_task_of_flags(parser: argparse.ArgumentParser, words: list) -> None:
    """Raise when a command line lacks the ``--task`` that it needs.

    ``fairseq-validate`` has no default and dies with ``KeyError: None``; in the other commands the flags of this
    package's generators are unknown under fairseq's default, and argparse says no more than that.

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
        raise ValueError(
            "--task is missing, and has no default here: give the one that the checkpoint was trained under, such as "
            "--task nar_translation"
        )
    if task not in ("translation", "translation_lev"):
        return
    theirs = {f.name for f in dataclasses.fields(TASK_DATACLASS_REGISTRY[task])}
    options = dataclasses.fields(TASK_DATACLASS_REGISTRY["nar_translation"])
    ours = {
        f.name for f in options if not str(f.default).startswith("${")
    } - theirs  # what refers to other flags is none
    flags = {f"--{name.replace('_', '-')}" for name in ours} - set(parser._option_string_actions)
    for flag in (word.split("=")[0] for word in words):
        if flag in flags:
            raise ValueError(
                f"{flag} is a flag of --task nar_translation, and this is {task}: give --task nar_translation"
            )


def prepare_help(parser: argparse.ArgumentParser) -> None:
    """Let the first reading succeed, with the task of this package where none is given and no architecture in place of
    none.

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
            "Shown are the flags of the --task (nar_translation, if none is given), the --arch and the --criterion of "
            "this "
            "command line. nar-flags lists all that nar_plugins adds, by task, generator, model and criterion."
        )


def refuse_workers_without_gpu() -> None:
    """Let a command with several workers fail, saying how ranks are started, where fairseq would start none of them.

    fairseq starts one process a GPU: without any GPU none, and the command ends at once as if all were done, or with an
    assertion or a division by zero on the way there. (No upstream issue.)
    """

    @replaces(distributed_utils, "call_main")
    def call_main_with_workers(call_main, cfg, main, **kwargs):
        check_workers(cfg)
        with command():
            return call_main(cfg, main, **kwargs)


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
        f"--distributed-world-size {size} --distributed-rank {rank} --distributed-no-spawn --distributed-init-method "
        f"{method} "
        "--distributed-backend gloo --ddp-backend legacy_ddp --device-id 0"
    )
