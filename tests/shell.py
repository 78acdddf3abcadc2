"""The recipes' scripts, as a user runs them."""

import os
import subprocess

from conftest import ROOT

# what a user may set for a recipe
VARIABLES = """
ANY_TEXT BERT_URL DEVICE DIACRITICS DIRECTION GPUS MAX_TOKENS MINI MODELS MORE_TEXT MULTI30K
MULTI30K_URL NEWS PIECES RATE RAW SQUAD_QG SQUAD_QG_URL TEACHER VENV WORKERS
""".split()


def bash(*arguments, expect: int = 0, **variables) -> str:
    """What bash prints, both streams; of the recipes' variables only these are set."""
    given = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**given, **{name: str(value) for name, value in variables.items()}},
    )
    assert done.returncode == expect, done.stdout[-4000:]
    return done.stdout
