"""The source token that each position of a NAT's canvas copies (Gu et al. 2018, section 3.3).

R canvases, one or several per sentence. The functions depend on lengths and fertilities only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nar_plugins.data.noise import splitmix64, uniform
from nar_plugins.modules.exporting import count_up_to

SOURCE_COPIES = ("fertility", "uniform", "soft")
SOFT_WIDTH = 0.3  # of the soft copy's Gaussian, as in the official code (its ``--hard_inputs`` is ``uniform``)


class Copy(NamedTuple):
    """The source position that every target position copies."""

    index: Tensor  # (R, T) int64, always a valid source position
    padding: Tensor  # (R, T) bool, True beyond the length


def from_fertilities(fertilities: Tensor, width: int = 0) -> Copy:
    """Every source token repeated by its fertility, in source order: fertilities (R, S) int64, 0 on padding.

    Args:
        width: T; 0: the largest sum of fertilities.
    """
    ends = fertilities.cumsum(1)
    total = ends[:, -1:]
    steps = torch.arange(width or int(total.max()), device=ends.device).expand(ends.size(0), -1).contiguous()
    index = count_up_to(ends, steps).clamp(max=ends.size(1) - 1)
    return Copy(index, steps >= total)


def uniformly(sources: Tensor, lengths: Tensor, width: int = 0) -> Copy:
    """Position t copies source token round(t (S-1)/(T-1)), so that first copies first and ``</s>`` copies ``</s>``.

    In integers, halves rounded up. A canvas of one position copies ``</s>``.

    Args:
        sources, lengths: (R,) int64, S and T of every canvas.
    """
    steps = torch.arange(width or int(lengths.max()), device=lengths.device)
    last, gaps = (sources - 1).unsqueeze(1), (lengths - 1).unsqueeze(1)
    index = torch.where(gaps > 0, (2 * steps * last + gaps) // (2 * gaps).clamp(min=1), last)
    return Copy(torch.minimum(index, last), steps >= lengths.unsqueeze(1))


def upsampled(sources: Tensor, factor: int, width: int = 0) -> Copy:
    """Every source token ``factor`` times, for CTC: sources (R,) int64 (Libovicky and Helcl 2018, section 3).

    Args:
        width: T; 0: ``factor`` times the longest source.
    """
    steps = torch.arange(width or factor * int(sources.max()), device=sources.device)
    index = torch.minimum(steps // factor, (sources - 1).unsqueeze(1))
    return Copy(index, steps >= factor * sources.unsqueeze(1))


def soft_weights(sources: Tensor, lengths: Tensor, source_width: int, width: int) -> Tensor:
    """The weight of every source token in every target position: (R, T, S) float32, with a sum of 1 over S.

    softmax_j(-(j - t S/T)^2 / 0.3), the official code's default.

    Args:
        sources, lengths: (R,) int64, S and T of every canvas. source_width, width: S and T of the result.
    """
    centres = torch.arange(width, device=lengths.device) * (sources / lengths).unsqueeze(1)
    tokens = torch.arange(source_width, device=lengths.device)
    distance = (tokens - centres.unsqueeze(-1)) ** 2 / SOFT_WIDTH
    return distance.neg().masked_fill(tokens >= sources[:, None, None], -float("inf")).softmax(-1)


def softly(copies: Tensor, sources: Tensor, lengths: Tensor, width: int) -> Tensor:
    """The mean of the source's embeddings at every target position: (R, S, D) -> (R, T, D).

    Args:
        sources, lengths: (R,) int64, S and T of every canvas. width: T.
    """
    return soft_weights(sources, lengths, copies.size(1), width).to(copies) @ copies


def softly_each(copies: Tensor, sources: Tensor, lengths: Tensor, width: int) -> Tensor:
    """``softly`` of every canvas by itself, 0 beyond its length: the sums have the same bits in every batch."""
    inputs = copies.new_zeros(len(copies), width, copies.size(2))
    for row, source, length, out in zip(copies, sources.tolist(), lengths.tolist(), inputs):
        own = torch.tensor([[source], [length]], device=copies.device)
        out[:length] = softly(row[None, :source].contiguous(), *own, length)[0]
    return inputs


# -- fertilities in generation ---------------------------------------------------------------------------------------


def bounded(fertilities: Tensor, sources: Tensor, longest: Tensor) -> Tensor:
    """Fertilities of a valid canvas: 1 for ``</s>``, 0 on padding, and 0 from the token on that exceeds ``longest``.

    (The official code's limit is twice the padded source and depends on the batch. Here it is ``--max-len-a/b``.)

    Args:
        fertilities: (..., S) int64. sources, longest: (...,) int64: source length and longest target, ``</s>``
            included.
    """
    positions = torch.arange(fertilities.size(-1), device=fertilities.device)
    last = (sources - 1).unsqueeze(-1)
    kept = fertilities.masked_fill(positions >= last, 0)
    kept = kept.masked_fill(kept.cumsum(-1) > (longest - 1).unsqueeze(-1), 0)
    return torch.where(positions == last, 1, kept)


def average(probabilities: Tensor) -> Tensor:
    """The expected fertility, rounded: (..., F) -> (...,) int64 (Gu et al. 2018, section 4.2)."""
    classes = torch.arange(probabilities.size(-1), device=probabilities.device)
    return (probabilities * classes).sum(-1).round().long()


def sample(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Sample a fertility with every uniform number: probabilities (..., F) and draws (...) broadcast -> int64."""
    cumulative = probabilities.double().cumsum(-1)[..., :-1]  # the last class absorbs rounding errors
    return (cumulative <= draws.unsqueeze(-1)).sum(-1)


def candidate_draws(source: Tensor, pad: int, seed: int, candidates: int) -> Tensor:
    """Uniform numbers (B, N, S) that depend on the source's tokens and the seed, not on the batch or its padding.

    The first candidates do not depend on the number of candidates, so that more of them can only improve the best.

    Args:
        source: (B, S) int64, padded on the right.
    """
    batch, width = source.shape
    positions = torch.arange(width, device=source.device)
    mixed = splitmix64(splitmix64(source) ^ positions).masked_fill(source.eq(pad), 0)
    streams = mixed.sum(1, keepdim=True) ^ splitmix64(torch.arange(candidates, device=source.device))
    return uniform(seed, 0, streams.flatten(), width).view(batch, candidates, width)


def distinct(candidates: Tensor) -> Tensor:
    """Candidates (B, N, ...) that differ from all earlier ones of their sentence: (B, N) bool."""
    flat = candidates.flatten(2)
    same = flat.unsqueeze(2).eq(flat.unsqueeze(1)).all(-1)
    return ~(same & torch.ones_like(same[0]).tril(-1)).any(2)
