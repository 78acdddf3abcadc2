"""The most probable symbol of every row of logits, and its log-probability."""

import math
from typing import Callable, Sequence, Tuple

import torch
from torch import Tensor

from nar_plugins.modules.linear import CPU_ROWS
from nar_plugins.modules.precision import full

LARGE = 1500  # symbols; with fewer the plain form is as fast
BLOCK = 128  # symbols
NUMBERS = 1 << 16  # scores; with fewer ``max`` and ``topk`` are as fast


def best_of_rows(logits: Tensor, banned: Tensor) -> Tuple[Tensor, Tensor]:
    """The symbols (M,) and their log-probabilities (M,), from logits (M, V) in float32, which are overwritten.

    Args:
        banned: (K,) int64, symbols that are never chosen; the softmax includes them.
    """
    if logits.device.type == "cpu" and logits.size(1) >= LARGE:
        return in_blocks(logits, banned)
    normaliser = logits.logsumexp(-1)
    best, symbols = logits.index_fill_(1, banned, -math.inf).max(-1)
    return symbols, best - normaliser


def in_blocks(logits: Tensor, banned: Tensor) -> Tuple[Tensor, Tensor]:
    """The same for many symbols on a CPU."""
    forbidden = logits.index_select(1, banned)
    best, symbols = max_of_rows(logits.index_fill_(1, banned, -math.inf))
    best = best.unsqueeze(1)
    largest = torch.cat([forbidden, best], 1).amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1) + forbidden.sub_(largest).exp_().sum(-1)
    return symbols, best.sub_(largest).squeeze(1).sub_(total.log_())


def largest_of_rows(scores: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest of every row of scores (M, V), M > 0 and V >= ``BLOCK``: (M, 1); where the first of these is, (M,)
    int64; which places of its block hold one, (M, ``BLOCK``) bool; and the largest of every block, (M, blocks).

    The largest of every block, then the best block's: on a CPU PyTorch's maximum with its index is not vectorised, and
    slower than the product that made the scores. A row with NaN has another result.
    """
    size = scores.size(1)
    whole = size // BLOCK * BLOCK
    blocks = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < size:
        blocks = torch.cat([blocks, scores[:, whole:].amax(-1, keepdim=True)], 1)
    best, block = blocks.max(-1, keepdim=True)
    start = (block * BLOCK).clamp_(max=size - BLOCK)
    inside = scores.gather(1, start + torch.arange(BLOCK)).eq(best)
    symbols = start.squeeze(1) + inside.to(torch.uint8).argmax(-1)
    return best, symbols, inside, blocks


def max_of_rows(scores: Tensor) -> Tuple[Tensor, Tensor]:
    """The largest of scores (..., V) and where it is, (...) each; of equals any."""
    if not in_blocks_is_faster(scores):
        return scores.max(-1)
    largest, symbols, *_ = largest_of_rows(scores.flatten(0, -2))
    return largest.view(scores.shape[:-1]), symbols.view(scores.shape[:-1])


def first_of_two(scores: Tensor) -> Tuple[Tensor, Tensor]:
    """The largest of scores (..., V) and where it is, (...) each, as ``topk(2)`` has them: of equals the one that it
    puts first, as in fairseq's search.
    """
    if in_blocks_is_faster(scores):
        largest, symbols, inside, blocks = largest_of_rows(scores.flatten(0, -2))
        if int(torch.count_nonzero(inside)) == int(torch.count_nonzero(blocks.eq(largest))) == len(symbols):  # no tie
            return largest.view(scores.shape[:-1]), symbols.view(scores.shape[:-1])
    largest, symbols = scores.topk(2)
    return largest[..., 0], symbols[..., 0]


def in_blocks_is_faster(scores: Tensor) -> bool:
    """Whether ``largest_of_rows`` is faster than PyTorch's ``max`` and ``topk`` of scores (..., V)."""
    return scores.device.type == "cpu" and scores.size(-1) >= LARGE and scores.numel() >= NUMBERS


def most_probable(project: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """The symbols of the largest logits ``project(features)``: features (..., D) -> (...) int64.

    On a CPU the logits are computed in chunks, which stay in its cache.
    """
    if features.device.type != "cpu":
        return project(features).argmax(-1)
    chunks = features.flatten(0, -2).split(CPU_ROWS)
    return torch.cat([max_of_rows(full(project(states)))[1] for states in chunks]).view(features.shape[:-1])


def ban(scores: Tensor, symbols: Sequence[int]) -> Tensor:
    """Set scores (..., V) of some symbols to -inf, in place."""
    for symbol in symbols:
        scores[..., symbol] = -math.inf
    return scores
