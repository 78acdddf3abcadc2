"""fairseq's commands, and ours, in this process: starting one as a real process takes four seconds. What they log is
not caught.
"""

import contextlib
import io
import sys
from unittest import mock

import compositions
import fairseq_cli.generate
import fairseq_cli.interactive
import fairseq_cli.preprocess
import fairseq_cli.train
import fairseq_cli.validate
import pytest
from fairseq import checkpoint_utils

compositions.remember()

MAINS = {
    "fairseq-train": fairseq_cli.train,
    "fairseq-generate": fairseq_cli.generate,
    "fairseq-validate": fairseq_cli.validate,
    "fairseq-interactive": fairseq_cli.interactive,
    "fairseq-preprocess": fairseq_cli.preprocess,
}


def here(command: str, *arguments) -> str:
    """Run a command in this process; what it prints.

    Without a worker for the data unless one is asked for: here, where the process goes on, each is waited for, five
        seconds.
    And with the handlers of the logs: fairseq-validate takes every second one of them away, pytest's among them.
    """
    out, words = io.StringIO(), [*map(str, arguments)]
    if command != "fairseq-preprocess" and "--num-workers" not in words:
        words += ["--num-workers", "0"]
    vars(checkpoint_utils.save_checkpoint).pop("best", None)  # fairseq keeps the best loss of the training before
    logs = mock.patch.object(fairseq_cli.validate, "reset_logging", lambda: None)
    with mock.patch.object(sys, "argv", [command, *words]), logs, contextlib.redirect_stdout(out):
        with contextlib.redirect_stderr(out):
            MAINS[command].cli_main()
    return out.getvalue()


def refusal(command: str, *arguments) -> str:
    """The one-line message of a command that must fail, run in this process."""
    with pytest.raises((Exception, SystemExit)) as error:
        here(command, *arguments)
    assert not isinstance(error.value, (AttributeError, TypeError, KeyError, IndexError)), repr(error.value)
    said = str(error.value)
    assert said and "\n" not in said.strip(), said
    return said


def own_refusal(main, *arguments) -> str:
    """The one line with which a command of ours ends, whose name stands before it."""
    with pytest.raises(SystemExit) as error:
        main([*map(str, arguments)])
    said, name = error.value.code, main.__module__.rpartition(".")[2]
    assert isinstance(said, str) and said.startswith(f"nar-{name}: ") and "\n" not in said, said
    return said
