"""Language-independent filters for a teacher's outputs."""

from typing import NamedTuple, Optional

import numpy as np

REASONS = (
    "empty",
    "unfinished",
    "length ratio",
    "repetition",
    "<unk>",
)  # checked in this order; the first match is reported

GRACE = 5  # tokens by which one side may always be longer than the other
MAX_NGRAM = 8  # length of the longest n-gram that counts as a repetition


class Limits(NamedTuple):
    """Limits beyond which an output is rejected."""

    ratio: float = 3.0  # the longer side has at most this many times the tokens of the shorter, plus GRACE
    repeats: int = 3  # an n-gram occurs at most this often in a row, or as often as one does in the source
    unknown: float = 0.5  # at most this share of the tokens is <unk>


def reject_reason(source: np.ndarray, target: np.ndarray, longest: int, limits: Limits, unk: int) -> Optional[str]:
    """The first of ``REASONS`` to reject a pair; None if it is accepted.

    Args:
        source: (S,) int64, with </s>.
        target: (T,) int64, with </s>.
        longest: the length, without </s>, at which the teacher's search stopped every hypothesis.
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
    repeats = max_repeats(target)
    if repeats > limits.repeats and repeats > max_repeats(source):
        return "repetition"
    if (target == unk).mean() > limits.unknown:
        return "<unk>"
    return None


def max_repeats(tokens: np.ndarray) -> int:
    """The largest number of times in a row that an n-gram of up to ``MAX_NGRAM`` tokens occurs in (T,)."""
    largest = min(1, len(tokens))
    for n in range(1, min(MAX_NGRAM, len(tokens) // 2) + 1):
        same = tokens[n:] == tokens[:-n]  # a run of k*n of these is the same n-gram k+1 times
        ends = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
        largest = max(largest, (np.diff(ends).max() - 1) // n + 1)
    return int(largest)
