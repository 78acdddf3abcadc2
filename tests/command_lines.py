"""Command lines of fairseq-* and nar-* that are parsed as the real commands do, without being run."""

import argparse
import importlib
import re
import sys
from typing import List, NamedTuple
from unittest import mock

import fairseq_cli.score
import pytest
from conftest import ROOT
from fairseq import options

import nar_plugins  # noqa: F401

PARSERS = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
    "fairseq-validate": options.get_validation_parser,
    "fairseq-preprocess": options.get_preprocessing_parser,
    "fairseq-score": fairseq_cli.score.get_parser,
    "fairseq-eval-lm": options.get_eval_lm_parser,
}
ENTRY_POINTS = dict(re.findall(r'"(nar-[a-z-]+) = ([\w.]+:\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8")))
UNKNOWN = "1"  # stands for a variable of unknown value: a word, a path, a number
NAMED = {"--arch": "cmlm_tiny", "--task": "nar_translation", "--criterion": "nar_loss", "--generator": "auto"}


class Command(NamedTuple):
    where: str  # file:line
    name: str
    arguments: List[str]


def complete(command: Command) -> List[str]:
    """Its arguments, with this checkout as the user-dir and a real name where a variable stood for one."""
    arguments = list(command.arguments)
    for i, (flag, value) in enumerate(zip(arguments, arguments[1:]), 1):
        if flag == "--user-dir":
            arguments[i] = str(ROOT / "nar_plugins")
        elif value == UNKNOWN and flag in NAMED:
            arguments[i] = NAMED[flag]
    if "..." in arguments:  # a page that shows a part of a command
        arguments.remove("...")
    return arguments


class Parsed(Exception):
    """A nar-* command has read its arguments and would now begin its work."""


def parse(command: Command) -> None:
    """Parse as the real command does; SystemExit when it would refuse."""
    arguments = complete(command)
    with mock.patch.object(sys, "argv", [command.name, *arguments]):
        if command.name in ("fairseq-preprocess", "fairseq-score"):
            PARSERS[command.name]().parse_args(arguments)
        elif command.name in PARSERS:
            parser = PARSERS[command.name]()
            options.parse_args_and_arch(parser, arguments)
        elif command.name == "nar-user-dir":
            assert not arguments
        else:
            module, function = ENTRY_POINTS[command.name].split(":")
            real = argparse.ArgumentParser.parse_args

            def parse_args(self, *args, **kwargs):
                real(self, *args, **kwargs)
                raise Parsed

            with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args), pytest.raises(Parsed):
                getattr(importlib.import_module(module), function)()
