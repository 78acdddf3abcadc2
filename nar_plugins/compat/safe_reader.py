"""Loading a checkpoint without running code from it.

PyTorch's safe unpickler (``weights_only``) loads tensors and plain containers, and refuses every other class or
function that a file names. fairseq's trainers store two more kinds of objects. NumPy numbers and arrays, which
``--eval-bleu`` adds to the metrics, are rebuilt here from validated values; NumPy's own functions would trust the file,
even for raw pointers. Objects of fairseq, such as the meters of 0.6 to 0.8, are replaced by ``NotLoaded``. No class or
function that a file names is imported.
"""

import math
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from typing import Dict, Iterator, List, Set

import numpy as np
import torch

PLAIN = re.compile(r"[biufc]\d{1,2}")  # dtypes without Python objects: bool, int, unsigned, float, complex


class CheckpointError(ValueError):
    """A checkpoint file that cannot or must not be loaded; the message names the file and what to do."""


class NotLoaded:
    """Placeholder for an object that was not loaded: it has no state, and raises when it is used.

    It is saved as an empty ``OrderedDict`` (in an optimizer's history, for example), which every version can load.
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
        if name.startswith("__"):  # Python and PyTorch look these up on every object
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
    """Raised for a NumPy object with anything but plain numbers."""


class PlainType:
    """Stand-in for ``numpy.dtype``."""

    def __init__(self, code, *_):
        if type(code) is not str or not PLAIN.fullmatch(code):
            raise NotPlain
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise NotPlain from error

    def __setstate__(self, state):
        """Set the byte order; refuse sub-arrays, fields and other parts of a dtype's state."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise NotPlain
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Stand-in for ``numpy.ndarray``, a subclass that is saved as an ``ndarray``."""

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
    """Stand-in for ``numpy.core.multiarray._reconstruct``: an empty array, which ``__setstate__`` fills."""
    if kind is not STAND_INS["numpy.ndarray"]:
        raise NotPlain
    return np.ndarray.__new__(kind, (0,))


def scalar(kind, content):
    """Stand-in for ``numpy.core.multiarray.scalar``."""
    if not isinstance(kind, PlainType) or type(content) is not bytes or len(content) != kind.dtype.itemsize:
        raise NotPlain
    return np.frombuffer(content, kind.dtype)[0]


def no_bytes(*args) -> bytes:
    """Stand-in for ``bytes``, which pickle calls for the content of an empty array."""
    if args:
        raise NotPlain
    return b""


def stand_in(kind: type, name: str) -> type:
    """A subclass of ``kind`` with a full name, by which PyTorch's unpickler finds it."""
    module, _, class_name = name.rpartition(".")
    return type(class_name, (kind,), {"__module__": module, "__qualname__": class_name})


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def named(function, name: str):
    """``function`` with a full name, by which PyTorch's unpickler finds it."""

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
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):  # the module's name in NumPy 2, and before
    for _name, _function in (("_reconstruct", reconstruct), ("scalar", scalar)):
        STAND_INS[f"{_module}.{_name}"] = named(_function, f"{_module}.{_name}")


def read(file, mmap: bool = False, any_objects: bool = False):
    """``torch.load`` on the CPU with PyTorch's safe unpickler, in every version of PyTorch.

    Args:
        file: a path, or a seekable file.
        mmap: memory-map the tensors.
        any_objects: replace objects of any origin, not only fairseq's, by ``NotLoaded``.

    Raises:
        pickle.UnpicklingError: the file is damaged, or has other objects.
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
        except NotPlain:  # the file has arrays of other types than metrics have
            replaced |= STAND_INS.keys()
        except pickle.UnpicklingError as error:
            names = [name for name in refused_names(error) if name not in replaced]
            if not names or not (any_objects or names[0].startswith("fairseq.")):
                raise
            replaced.add(names[0])


def refused_names(error: pickle.UnpicklingError) -> List[str]:
    """The full names that PyTorch's message may refer to; none if it is about something else."""
    match = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    return [match[1], f"builtins.{match[1]}"] if match else []  # the message omits the module of builtins


def not_loaded(value, seen: Set[int] = None) -> Iterator[str]:
    """The full names of all ``NotLoaded`` objects in ``value``, at any depth."""
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
