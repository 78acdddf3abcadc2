"""Reading a checkpoint without running anything that it holds.

PyTorch's safe unpickler (``weights_only``) reads tensors and plain containers, and refuses every other name in a file.
The trainers of fairseq store two things more. NumPy's numbers and arrays, which ``--eval-bleu`` leaves among the
metrics, are
rebuilt here from values that are checked: NumPy's own rebuilders trust what they read, down to raw pointers. Objects of
fairseq's, such as the meters of 0.6 to 0.8, become ``NotLoaded``. No class or function that a file names is ever
imported.
"""

import math
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from typing import Dict, Iterator, List, Set

import numpy as np
import torch

PLAIN = re.compile(r"[biufc]\d{1,2}")  # bool, int, unsigned, float, complex: numbers without a Python object inside


class CheckpointError(ValueError):
    """A checkpoint file that cannot or must not be loaded; the message names the file and the way out."""


class NotLoaded:
    """Stands for an object that was not loaded: it keeps nothing, and says so when somebody needs it.

    Where it is saved again (in an optimizer's history, for example) it leaves an empty container, which every reader
    knows.
    """

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __reduce__(self):
        return OrderedDict, ()

    def __getattr__(self, name):
        if name.startswith("__"):  # Python and PyTorch ask every object for these
            raise AttributeError(name)
        self.needed()

    def needed(self, *args):
        raise CheckpointError(
            f"the checkpoint's {full_name(type(self))} was not loaded, because it is no plain data, and is needed "
            "here: "
            "--reset-optimizer, --reset-lr-scheduler and --reset-meters do without what a training was"
        )

    __getitem__ = __contains__ = __iter__ = __len__ = __bool__ = __call__ = needed


class NotPlain(Exception):
    """A NumPy object that is not made of plain numbers."""


class PlainType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code, *_):
        if type(code) is not str or not PLAIN.fullmatch(code):
            raise NotPlain
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise NotPlain from error

    def __setstate__(self, state):
        """The byte order; whatever else NumPy would take from here must say that the type is a plain one."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise NotPlain
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Stands for ``numpy.ndarray``, and is one; saved again it is NumPy's own."""

    def __new__(cls, *args, **kwargs):
        raise NotPlain

    def __setstate__(self, state):
        if type(state) is not tuple or len(state) != 5:
            raise NotPlain
        _, shape, kind, fortran, content = state
        if (
            not isinstance(kind, PlainType)
            or type(shape) is not tuple
            or any(type(n) is not int or n < 0 for n in shape)
        ):
            raise NotPlain
        if type(content) is not bytes or len(content) != math.prod(shape) * kind.dtype.itemsize:
            raise NotPlain
        super().__setstate__((1, shape, kind.dtype, bool(fortran), content))

    def __reduce_ex__(self, protocol):
        return np.asarray(self).__reduce_ex__(protocol)


def reconstruct(kind, *_) -> PlainArray:
    """Stands for ``numpy.core.multiarray._reconstruct``: an empty array, which ``__setstate__`` fills."""
    if kind is not STAND_INS["numpy.ndarray"]:
        raise NotPlain
    return np.ndarray.__new__(kind, (0,))


def scalar(kind, content):
    """Stands for ``numpy.core.multiarray.scalar``."""
    if not isinstance(kind, PlainType) or type(content) is not bytes or len(content) != kind.dtype.itemsize:
        raise NotPlain
    return np.frombuffer(content, kind.dtype)[0]


def no_bytes(*args) -> bytes:
    """Stands for ``bytes``, which pickle calls for the content of an empty array."""
    if args:
        raise NotPlain
    return b""


def stand_in(kind: type, name: str) -> type:
    """``kind`` under a full name, the one by which PyTorch's unpickler will find it."""
    module, _, own = name.rpartition(".")
    return type(own, (kind,), {"__module__": module, "__qualname__": own})


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def named(function, name: str):
    """``function`` under a full name, as ``stand_in``."""

    def call(*args):
        return function(*args)

    call.__module__, _, call.__qualname__ = name.rpartition(".")
    call.__name__ = call.__qualname__
    return call


STAND_INS: Dict[str, object] = {
    "numpy.dtype": stand_in(PlainType, "numpy.dtype"),
    "numpy.ndarray": stand_in(PlainArray, "numpy.ndarray"),
}
STAND_INS["builtins.bytes"] = named(no_bytes, "builtins.bytes")
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # NumPy 2's name and the one before
    for _name, _function in (("_reconstruct", reconstruct), ("scalar", scalar)):
        STAND_INS[f"{_module}.{_name}"] = named(_function, f"{_module}.{_name}")


def read(file, mmap: bool = False, anything: bool = False):
    """``torch.load`` on the CPU with PyTorch's safe unpickler, whatever the default of the installed version is.

    Args:
        file: a path, or a file that can be read again from its start.
        mmap: map the tensors into memory instead of reading them.
        anything: let ``NotLoaded`` stand for objects of every origin, and not of fairseq's only.

    Raises:
        pickle.UnpicklingError: the file names something else, or needs it.
    """
    replaced: Set[str] = set()
    while True:
        allowed = [STAND_INS[name] for name in STAND_INS.keys() - replaced]
        allowed += [stand_in(NotLoaded, name) for name in replaced]
        if hasattr(file, "seek"):
            file.seek(0)
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        except NotPlain:  # the arrays of this file are no metrics
            replaced |= STAND_INS.keys()
        except pickle.UnpicklingError as error:
            names = [name for name in refused_names(error) if name not in replaced]
            if not names or not (anything or names[0].startswith("fairseq.")):
                raise
            replaced.add(names[0])


def refused_names(error: pickle.UnpicklingError) -> List[str]:
    """The full names that PyTorch's message may mean; none where it is about something else."""
    found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    return [found[1], f"builtins.{found[1]}"] if found else []  # it leaves builtins' own name out


def not_loaded(value, seen: Set[int] = None) -> Iterator[str]:
    """The full names of what was not loaded somewhere in ``value``."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (torch.Tensor, np.ndarray, str, bytes)):
        return
    seen.add(id(value))
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, NotLoaded):
        yield full_name(kind)
        return
    parts = []
    if isinstance(value, dict):
        parts += [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set)):
        parts += value
    if isinstance(value, (Namespace, OrderedDict)):
        parts += vars(value).values()
    for part in parts:
        yield from not_loaded(part, seen)
