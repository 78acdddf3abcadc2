"""Replacing one of fairseq's functions by a workaround."""

import functools
from typing import Callable


def replaces(owner, name: str) -> Callable:
    """Decorator that replaces ``owner.name``; the new function gets the original as its first argument.

    A function that was replaced already is not replaced again, so that workarounds can be applied twice.

    Args:
        owner: a module or a class of fairseq.
    """

    def decorate(function: Callable) -> Callable:
        original = getattr(owner, name)
        if not hasattr(original, "__wrapped__"):

            @functools.wraps(original)
            def replacement(*args, **kwargs):
                return function(original, *args, **kwargs)

            setattr(owner, name, replacement)
        return function

    return decorate
