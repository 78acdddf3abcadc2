"""Fuzzy alignment (Ma et al. 2023, section 3): the n-grams that a graph is expected to output, against the target's.

Beside the notation of ``paths.py``: A (B, L, L), the probabilities of the links.
"""

from typing import Tuple

import torch
from torch import Tensor

FEW = 1e-6  # n-grams on a path at least: the gradient of a division by 0 is NaN even where nothing reads it


def overlap(emissions: Tensor, links: Tensor, real: Tensor, target: Tensor, order: int) -> Tensor:
    """The expected precision of the n-grams, clipped as in BLEU, times BLEU's brevity penalty of the expected length:
    (B,), from 0 to 1.

    Args:
        emissions: (B, T, L). links: (B, L, L). real: (B, T) bool, False on padding. target: (B, T) int64, of at least
            ``order`` tokens each.
        order: n.
    """
    transitions = links.exp()
    visits = expected_visits(transitions)
    counts, wanted, own = expected_counts(emissions.exp(), transitions, visits, real, target, order)
    walked = visits.unsqueeze(1)
    for _ in range(order - 1):
        walked = walked @ transitions
    precision = (torch.minimum(counts, wanted) * own).sum(1) / walked.sum((1, 2)).clamp(min=FEW)
    brevity = (1 - real.sum(1) / visits.sum(1)).clamp(max=0).exp()
    return brevity * precision


def expected_visits(transitions: Tensor) -> Tensor:
    """How probable it is that a path visits each vertex, (B, L); 0 for vertex 0, which emits nothing.

    They are the solution r of r (I - A) = (1, 0, ..., 0), a triangular system.
    """
    vertices = transitions.size(1)
    system = torch.eye(vertices, dtype=transitions.dtype, device=transitions.device) - transitions
    start = torch.zeros_like(transitions[:, :1])
    start[:, :, 0] = 1
    visits = torch.linalg.solve_triangular(system, start, upper=True, left=False, unitriangular=True)
    return (visits - start).squeeze(1)


def expected_counts(
    probabilities: Tensor, transitions: Tensor, visits: Tensor, real: Tensor, target: Tensor, order: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """How often each n-gram of the target is expected on a path, how often the target has it, and which n-grams stand
    there for the first time: each (B, T - n + 1), the last bool.

    Args:
        probabilities: (B, T, L), of the t-th token on vertex v. transitions: (B, L, L), A. visits: (B, L).
    """
    number = target.size(1) - order + 1
    reached = visits.unsqueeze(1)
    for place in range(order):
        reached = (reached if place == 0 else reached @ transitions) * probabilities[:, place : place + number]
    same = torch.ones((), dtype=torch.bool, device=target.device)
    for place in range(order):
        part = target[:, place : place + number]
        same = same & part.unsqueeze(2).eq(part.unsqueeze(1))
    whole = real[:, order - 1 :]  # n-grams without padding
    same = same & whole.unsqueeze(1) & whole.unsqueeze(2)
    first = whole & ~same.tril(-1).any(2)
    return reached.sum(2), same.sum(2).to(reached), first
