"""What can be seen to be wrong with a teacher's output without knowing the language."""

from typing import NamedTuple, Optional

import numpy as np

REASONS = ("empty", "unfinished", "length ratio", "repetition", "<unk>")  # in this order; the first that holds counts

GRACE = 5  # tokens by which the longer side may always be longer
LONGEST_NGRAM = 8  # of those that are looked at for loops


class Limits(NamedTuple):
    """Beyond these an output is broken."""

    ratio: float = 3.0  # the longer side has at most so many times the tokens of the shorter, and GRACE more
    repeats: int = 3  # an n-gram stands at most so often in a row, or as often as one does in the source
    unknown: float = 0.5  # at most this part of the tokens is <unk>


def reason(source: np.ndarray, target: np.ndarray, longest: int, limits: Limits, unk: int) -> Optional[str]:
    """The first of ``REASONS`` that holds for a pair, or None.

    Args:
        source: (S,) int64, with </s>.
        target: (T,) int64, with </s>.
        longest: tokens, </s> not counted, at which the teacher's search ended without asking it.
        unk: index of ``<unk>``.
    """
    source, target = source[:-1], target[:-1]
    if len(target) == 0:
        return "empty"
    if len(target) >= longest:
        return "unfinished"
    shorter, longer = sorted((len(source), len(target)))
    if longer > limits.ratio * shorter + GRACE:
        return "length ratio"
    repeats = most_repeats(target)
    if repeats > limits.repeats and repeats > most_repeats(source):
        return "repetition"
    if (target == unk).mean() > limits.unknown:
        return "<unk>"
    return None


def most_repeats(tokens: np.ndarray) -> int:
    """How often in a row an n-gram of up to ``LONGEST_NGRAM`` tokens stands in (T,) at most."""
    most = min(1, len(tokens))
    for n in range(1, min(LONGEST_NGRAM, len(tokens) // 2) + 1):
        same = tokens[n:] == tokens[:-n]  # a run of k*n of these is the same n-gram k+1 times
        ends = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
        most = max(most, (np.diff(ends).max() - 1) // n + 1)
    return int(most)
