#!/usr/bin/env bash
# OmegaConf 2.3.0: asking a structured config for an option that it has not, getattr(config, name, default), keeps alive all that
# the calling functions hold.
#
# getattr with a default swallows the AttributeError, so one expects that nothing is left of it. But the error and the frames
# in which it was raised refer to one another, up to the function that asked. That function's local variables, and its callers', stay
# until the garbage collector happens to run: a model, a batch, or a data loader with its worker processes.
# What helps: ask for "name in config" first, or keep large objects out of the functions that ask.
#
# Output seen (Linux, x86-64, Python 3.11):
#   an option that is there: the caller's object is freed
#   an option that is missing: the caller's object is kept
#   the same of a plain object: the caller's object is freed
#   after gc.collect(): the caller's object is freed
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check omegaconf==2.3.0
"$folder/env/bin/python" - <<'PYTHON'
import gc
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

from omegaconf import OmegaConf


@dataclass
class Options:
    seed: int = 1


class Large:
    """Stands for a loader with its workers."""


def ask(config, name):
    """Ask for an option; a weak reference to what this function held."""
    held = Large()
    assert getattr(config, name, None) == (1 if name == "seed" else None)
    return weakref.ref(held)


gc.disable()  # the collector runs where it is called, and nowhere else
config, plain = OmegaConf.structured(Options()), SimpleNamespace(seed=1)
missing = ask(config, "no_such_option")
found = [
    ("an option that is there", ask(config, "seed")() is None),
    ("an option that is missing", missing() is None),
    ("the same of a plain object", ask(plain, "no_such_option")() is None),
]
gc.collect()
found.append(("after gc.collect()", missing() is None))
for case, freed in found:
    print(f"{case}: the caller's object is {'freed' if freed else 'kept'}")
assert [freed for _, freed in found] == [True, False, True, True], found
PYTHON
