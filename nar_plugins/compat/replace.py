"""How a workaround takes the place of one of fairseq's functions."""

import functools
from typing import Callable


def replaces(owner, name: str) -> Callable:
    """Put the decorated function in the place of ``owner.name``, once.

    It gets the original in front of the arguments. Where the place is taken already, nothing changes, so that every
    workaround can be applied again.

    Args:
        owner: a module or a class of fairseq's.
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
