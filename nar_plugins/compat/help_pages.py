"""Command lines: help pages with all flags, and a ``--task`` that is missing."""

import argparse
import dataclasses
import sys

from fairseq import options
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from nar_plugins.compat.replace import replaces


def show_all_flags_in_help() -> None:
    """Let ``--help`` show the flags of the task, the architecture, the criterion and the other choices.

    fairseq parses the command line twice, and prints the help in the first pass, which has only its general flags. This
    also raises for a missing ``--task``. (No upstream issue.)
    """

    @replaces(options, "parse_args_and_arch")
    def parse_args_and_arch(
        parse, parser, input_args=None, parse_known=False, suppress_defaults=False, modify_parser=None
    ):
        given = list(sys.argv[1:] if input_args is None else input_args)
        arguments = given[: given.index("--")] if "--" in given else given
        if not {"-h", "--help"} & set(arguments):
            check_task_of_flags(parser, arguments)
            return parse(parser, input_args, parse_known, suppress_defaults, modify_parser)
        passes = []

        def modify(parser):
            if modify_parser is not None:
                modify_parser(parser)
            passes.append(parser)
            if len(passes) == 1:  # before the first pass
                prepare_help(parser)
            else:  # before the second pass, with all flags
                parser.print_help()
                parser.exit()

        parse(parser, [argument for argument in given if argument not in ("-h", "--help")], modify_parser=modify)


def check_task_of_flags(parser: argparse.ArgumentParser, arguments: list) -> None:
    """Raise when a command line lacks the ``--task`` that it needs.

    ``fairseq-validate`` has no default task and raises ``KeyError: None``. In the other commands fairseq's default task
    does not have the flags of this package's generators, and argparse only reports them as unknown.

    Args:
        parser: the parser before the first pass.
        arguments: the command line.
    """
    if "--task" not in parser._option_string_actions:
        return
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--task", default=parser.get_default("task"))
    try:
        task = reader.parse_known_args(arguments)[0].task
    except SystemExit:  # --task has no value; argparse has printed that
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
    # a field whose default refers to another flag is no flag
    ours = {f.name for f in options if not str(f.default).startswith("${")} - theirs
    flags = {f"--{name.replace('_', '-')}" for name in ours} - set(parser._option_string_actions)
    for flag in (argument.split("=")[0] for argument in arguments):
        if flag in flags:
            raise ValueError(
                f"{flag} is a flag of --task nar_translation, and this is {task}: give --task nar_translation"
            )


def prepare_help(parser: argparse.ArgumentParser) -> None:
    """Let the first pass succeed without required flags: the default task is this package's, without an architecture.

    An epilog explains which flags are shown, and that nar-flags lists the others.
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
            "this command line. nar-flags lists all that nar_plugins adds, by task, generator, model and criterion."
        )
