"""The candidate lengths: the most probable ones, or those around the reference's."""

from typing import Optional

import torch
from torch import Tensor


def candidate_lengths(lprobs: Tensor, beam: int, longest: Optional[Tensor] = None, shortest: int = 2) -> tuple:
    """The ``beam`` most probable lengths of every sentence, best first.

    As in the Mask-Predict release, lengths are raised to ``shortest`` after the choice. Duplicates that this makes are
    marked in ``keep``, not replaced.

    Args:
        lprobs: (B, classes) log-probabilities; class k means k tokens with ``</s>``.
        longest: (B,) int64, the longest length allowed (``--max-len-a/b``); None: bounded by the classes only.

    Returns:
        lengths: (B, N) int64, N = min(beam, classes - 1).
        keep: (B, N) bool, False for a duplicate of an earlier column and for a length of probability 0.
    """
    if longest is not None:
        classes = torch.arange(lprobs.size(1), device=lprobs.device)
        lprobs = lprobs.masked_fill(classes > longest.clamp(min=shortest).unsqueeze(1), -float("inf"))
    score, lengths = lprobs.topk(min(beam, lprobs.size(1) - 1), dim=1)
    keep = score > -float("inf")
    keep[:, 0] = True
    return raise_and_mark(lengths.masked_fill(~keep, shortest), keep, shortest)


def gold_lengths(gold: Tensor, beam: int, classes: int, shortest: int = 2) -> tuple:
    """``beam`` lengths around the reference's, ascending: from n - (beam-1)//2 to n + beam//2 (``--gold-length``).

    Args:
        gold: (B,) int64.

    Returns:
        lengths, keep: as ``candidate_lengths``.
    """
    window = torch.arange(beam, device=gold.device) - (beam - 1) // 2
    lengths = (gold.unsqueeze(1) + window).clamp(max=classes - 1)
    return raise_and_mark(lengths, torch.ones_like(lengths, dtype=torch.bool), shortest)


def raise_and_mark(lengths: Tensor, keep: Tensor, shortest: int) -> tuple:
    """Raise lengths (B, N) to ``shortest``; clear ``keep`` (B, N) where a length equals an earlier kept column."""
    lengths = lengths.clamp(min=shortest)
    same = lengths.unsqueeze(2).eq(lengths.unsqueeze(1)) & keep.unsqueeze(1)
    earlier = torch.ones_like(same[0]).tril(-1)
    return lengths, keep & ~(same & earlier).any(2)
