"""Glancing training (Qian et al. 2021): reveal target tokens in proportion to the first pass's errors."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

FORM = re.compile(r"(?P<start>\d*\.?\d+)(?::(?P<end>\d*\.?\d+)@(?P<updates>\d*\.?\d+)(?P<unit>[kM]?))?")


@dataclass(frozen=True)
class Schedule:
    """A ratio that changes linearly from ``start`` to ``end`` over ``updates`` updates, and then stays at ``end``."""

    start: float
    end: float
    updates: int

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """``0.5:0.3@300k``: from 0.5 to 0.3 over 300,000 updates; ``0.5``: constant.

        Raises:
            ValueError: the text has another form, or a ratio is outside 0 to 1.
        """
        match = FORM.fullmatch(text.strip())
        if not match:
            raise ValueError(
                f"--glancing '{text}' is no schedule: write a ratio, or start:end@updates, as in 0.5:0.3@300k"
            )
        start = float(match["start"])
        end = start if match["end"] is None else float(match["end"])
        updates = float(match["updates"] or 1) * {"k": 1000, "M": 1000000}.get(match["unit"], 1)
        if max(start, end) > 1 or updates < 1:
            raise ValueError(f"--glancing '{text}': a ratio is from 0 to 1, and it takes at least one update")
        return cls(start, end, int(updates))

    def at(self, update: int) -> float:
        """The ratio at an update."""
        return self.start + (self.end - self.start) * min(1.0, update / self.updates)


def reveal(predicted: Tensor, gold: Tensor, real: Tensor, draws: Tensor, ratio: float) -> Tensor:
    """The gold tokens that the second pass sees: floor(ratio x wrong tokens) of every sentence, from all its positions.

    Section 3.2 of the paper, with the Hamming distance.

    Args:
        predicted, gold: (B, T) int64. real: (B, T) bool, False on padding. draws: (B, T) uniform numbers
            that choose the positions.

    Returns:
        (B, T) bool.
    """
    wrong = (predicted.ne(gold) & real).sum(1)
    count = (wrong.double() * ratio + 1e-6).long()  # 0.53 x 100 is 53 in spite of rounding
    rank = draws.masked_fill(~real, float("inf")).argsort(1).argsort(1)
    return (rank < count.unsqueeze(1)) & real


def same_dropout(device: torch.device):
    """A context that restores the random generators at its end, so that the next pass has the same dropout."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
