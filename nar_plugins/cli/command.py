"""What every ``nar-*`` command does alike: its parser, its errors in one line, its silence."""

import argparse
import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager

from nar_plugins.data.bleu import TOKENIZERS


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows the description, the module's docstring, as it stands."""
    return argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_tokenize(parser: argparse.ArgumentParser, default: str) -> None:
    """The option of a command that computes BLEU.

    Args:
        default: what the help says of the tokeniser without it.
    """
    parser.add_argument(
        "--tokenize",
        choices=TOKENIZERS,
        metavar="NAME",
        help=f"sacreBLEU's tokeniser for BLEU, one of {', '.join(TOKENIZERS)} (default: {default})",
    )


@contextmanager
def one_line_errors(name: str):
    """End the command with its name and the message where an input or a file cannot be used."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: {error}")


@contextmanager
def only_results():
    """Let a command print its results alone: fairseq and hydra would log a page, PyTorch would warn."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.callback(logging.disable, logging.root.manager.disable)
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)
        yield
