"""What the ``nar-*`` commands share: the parser, values that are flags, errors in one line, and no logs of fairseq."""

import argparse
import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import List

from nar_plugins.data.bleu import TOKENIZERS


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows the description, a module's docstring, with its line breaks."""
    return argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_tokenize(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--tokenize``, the tokeniser of BLEU.

    Args:
        default: the help text's description of the default.
    """
    parser.add_argument(
        "--tokenize",
        choices=TOKENIZERS,
        metavar="NAME",
        help=f"sacreBLEU's tokeniser for BLEU, one of {', '.join(TOKENIZERS)} (default: {default})",
    )


def shield_flags(argv: List[str], parser: argparse.ArgumentParser) -> List[str]:
    """The command line with a blank before values of --flags and --system that are a single flag, such as "--cpu".

    argparse takes a value that starts with a dash and has no blank for an option, even if it was quoted.
    """
    options = {string for each in (parser, *parsers_of(parser)) for string in each._option_string_actions}
    shielded = list(argv)
    for i, argument in enumerate(argv):
        value = i + {"--flags": 1, "--system": 3}.get(argument, len(argv))
        if value < len(argv) and argv[value].startswith("-") and argv[value] not in options:
            shielded[value] = f" {argv[value]}"
    return shielded


def parsers_of(parser: argparse.ArgumentParser) -> List[argparse.ArgumentParser]:
    """The parsers of a parser's subcommands."""
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [each for action in kinds for each in action.choices.values()]


@contextmanager
def one_line_errors(name: str, status: int = 1):
    """Exit with the command's name and the message when an input or a file cannot be used.

    Args:
        status: the exit status.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"  # str(error) begins with [Errno 2]
        if status == 1:
            sys.exit(f"{name}: {message}")
        print(f"{name}: {message}", file=sys.stderr)
        sys.exit(status)


@contextmanager
def only_results():
    """Suppress the logs of fairseq and hydra and PyTorch's warnings, so that only results are printed."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.callback(logging.disable, logging.root.manager.disable)
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)
        yield
