"""The most probable symbol of every row of logits, and its log-probability."""

import math
from typing import Sequence, Tuple

import torch
from torch import Tensor

LARGE = 1500  # symbols; with fewer the plain form is as fast
BLOCK = 128  # symbols


def best_of_rows(logits: Tensor, banned: Sequence[int]) -> Tuple[Tensor, Tensor]:
    """The symbols (M,) and their log-probabilities (M,), from logits (M, V) in float32, which are overwritten.

    Args:
        banned: symbols that are never chosen; the softmax includes them.
    """
    if logits.device.type == "cpu" and logits.size(1) >= LARGE:
        return in_blocks(logits, banned)
    normaliser = logits.logsumexp(-1)
    best, symbols = ban(logits, banned).max(-1)
    return symbols, best - normaliser


def in_blocks(logits: Tensor, banned: Sequence[int]) -> Tuple[Tensor, Tensor]:
    """The same for many symbols on a CPU, where PyTorch's maximum with its index is not vectorised and slower than the
    product that made the logits: the largest of every block, then the best block's best symbol.
    """
    forbidden = logits[:, list(banned)]
    ban(logits, banned)
    size = logits.size(1)
    whole = size // BLOCK * BLOCK
    blocks = logits[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < size:
        blocks = torch.cat([blocks, logits[:, whole:].amax(-1, keepdim=True)], 1)
    best, block = blocks.max(-1, keepdim=True)
    start = (block * BLOCK).clamp_(max=size - BLOCK)
    inside = logits.gather(1, start + torch.arange(BLOCK)).eq(best)
    symbols = start.squeeze(1) + inside.to(torch.uint8).argmax(-1)  # of equals the first
    largest = torch.cat([forbidden, best], 1).amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1) + (forbidden - largest).exp_().sum(-1)
    return symbols, (best - largest).squeeze(1) - total.log_()


def ban(scores: Tensor, symbols: Sequence[int]) -> Tensor:
    """Set scores (..., V) of some symbols to -inf, in place."""
    for symbol in symbols:
        scores[..., symbol] = -math.inf
    return scores
