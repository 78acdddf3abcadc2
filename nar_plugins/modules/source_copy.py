"""Which source token feeds which target position: the canvas of a NAT before its embeddings (Gu et al. 2018, section
3.3).

R rows are canvases, one or several a sentence. All functions know only lengths and fertilities, never tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nar_plugins.data.noise import splitmix64, uniform

SOURCE_COPIES = ("fertility", "uniform", "soft")
SOFT_WIDTH = 0.3  # of the soft copy's Gaussian, as in the official code (its ``--hard_inputs`` is ``uniform``)


class Copy(NamedTuple):
    """For every target position the source position it copies, and where there is none."""

    index: Tensor  # (R, T) int64, always a valid source position
    padding: Tensor  # (R, T) bool, True beyond the length


def from_fertilities(fertilities: Tensor, width: int = 0) -> Copy:
    """Every source token as often as its fertility says, in source order: fertilities (R, S) int64, 0 on padding.

    Args:
        width: T, when it is not to be the longest row's sum.
    """
    ends = fertilities.cumsum(1)
    total = ends[:, -1:]
    steps = torch.arange(width or int(total.max()), device=ends.device).expand(ends.size(0), -1).contiguous()
    index = torch.searchsorted(ends, steps, right=True).clamp(max=ends.size(1) - 1)
    return Copy(index, steps >= total)


def uniformly(sources: Tensor, lengths: Tensor, width: int = 0) -> Copy:
    """Position t copies source token round(t (S-1)/(T-1)), so that first meets first and ``</s>`` meets ``</s>``.

    In integers, halves rounded up; a canvas of one position copies ``</s>``.

    Args:
        sources, lengths: (R,) int64, S and T of every row.
    """
    steps = torch.arange(width or int(lengths.max()), device=lengths.device)
    last, gaps = (sources - 1).unsqueeze(1), (lengths - 1).unsqueeze(1)
    index = torch.where(gaps > 0, (2 * steps * last + gaps) // (2 * gaps).clamp(min=1), last)
    return Copy(torch.minimum(index, last), steps >= lengths.unsqueeze(1))


def upsampled(sources: Tensor, factor: int) -> Copy:
    """Every source token ``factor`` times: sources (R,) int64, the canvas of CTC (Libovicky and Helcl 2018, section
    3).
    """
    steps = torch.arange(factor * int(sources.max()), device=sources.device)
    index = torch.minimum(steps // factor, (sources - 1).unsqueeze(1))
    return Copy(index, steps >= factor * sources.unsqueeze(1))


def soft_weights(sources: Tensor, lengths: Tensor, source_width: int, width: int) -> Tensor:
    """How much of every source token goes into every target position: (R, T, S) float32, rows add up to 1.

    softmax_j(-(j - t S/T)^2 / 0.3), the official code's default.

    Args:
        sources, lengths: (R,) int64, S and T of every row. source_width, width: of the result.
    """
    centres = torch.arange(width, device=lengths.device) * (sources / lengths).unsqueeze(1)
    tokens = torch.arange(source_width, device=lengths.device)
    distance = (tokens - centres.unsqueeze(-1)) ** 2 / SOFT_WIDTH
    return distance.neg().masked_fill(tokens >= sources[:, None, None], -float("inf")).softmax(-1)


# -- fertilities in generation
# -------------------------------------------------------------------------------------------


def bounded(fertilities: Tensor, sources: Tensor, longest: Tensor) -> Tensor:
    """Fertilities that make a canvas: 1 for ``</s>``, 0 on padding, and 0 for a word from which on it would be too
    long.

    (The official code's bound is twice the padded source: it depends on the batch. Ours is ``--max-len-a/b``.)

    Args:
        fertilities: (..., S) int64. sources, longest: (...,) int64: source length, and longest target, ``</s>``
            counted.
    """
    positions = torch.arange(fertilities.size(-1), device=fertilities.device)
    last = (sources - 1).unsqueeze(-1)
    words = fertilities.masked_fill(positions >= last, 0)
    words = words.masked_fill(words.cumsum(-1) > (longest - 1).unsqueeze(-1), 0)
    return torch.where(positions == last, 1, words)


def average(probabilities: Tensor) -> Tensor:
    """The expected fertility, rounded: (..., F) -> (...,) int64 (Gu et al. 2018, section 4.2)."""
    classes = torch.arange(probabilities.size(-1), device=probabilities.device)
    return (probabilities * classes).sum(-1).round().long()


def sample(probabilities: Tensor, draws: Tensor) -> Tensor:
    """A fertility for every uniform number: probabilities (..., F) and draws (...) broadcast -> int64."""
    below = probabilities.double().cumsum(-1)[..., :-1] <= draws.unsqueeze(
        -1
    )  # the last class takes what rounding leaves
    return below.sum(-1)


def candidate_draws(source: Tensor, pad: int, seed: int, candidates: int) -> Tensor:
    """Uniform numbers (B, N, S) that depend on the source's tokens and the seed, never on the batch or its padding.

    The first candidates are the same however many there are, so that more candidates can only be better.

    Args:
        source: (B, S) int64, padded on the right.
    """
    batch, width = source.shape
    positions = torch.arange(width, device=source.device)
    mixed = splitmix64(splitmix64(source) ^ positions).masked_fill(source.eq(pad), 0)
    streams = mixed.sum(1, keepdim=True) ^ splitmix64(torch.arange(candidates, device=source.device))
    return uniform(seed, 0, streams.flatten(), width).view(batch, candidates, width)


def distinct(rows: Tensor) -> Tensor:
    """Which of the candidates (B, N, ...) equal no earlier one of their sentence: (B, N) bool."""
    flat = rows.flatten(2)
    same = flat.unsqueeze(2).eq(flat.unsqueeze(1)).all(-1)
    return ~(same & torch.ones_like(same[0]).tril(-1)).any(2)
