"""Packed states and padded tensors: every state has a slot of its padded tensor, and no two states share one.

Because slots are unique, the backward passes are simple copies. PyTorch's indexing would also keep the states for the
backward pass and sum their gradients.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _Spread(Function):
    @staticmethod
    def forward(ctx, x, slots, size):
        ctx.save_for_backward(slots)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(Function):
    @staticmethod
    def forward(ctx, x, slots):
        ctx.save_for_backward(slots)
        ctx.size = x.size(0)
        return x.index_select(0, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        full = gradient.new_zeros(ctx.size, *gradient.shape[1:])
        return full.index_copy_(0, ctx.saved_tensors[0], gradient), None


def spread(x: Tensor, slots: Tensor, size: int) -> Tensor:
    """Packed (C, ...) -> (size, ...): each state at its slot (C,) int64, 0 elsewhere."""
    if not torch.is_grad_enabled():  # calling a Function takes longer than a small copy
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, slots, x)
    return _Spread.apply(x, slots, size)


def collect(x: Tensor, slots: Tensor) -> Tensor:
    """(size, ...) -> packed (C, ...): the states at the slots (C,) int64."""
    return _Collect.apply(x, slots) if torch.is_grad_enabled() else x.index_select(0, slots)


def queries_of_sentences(sentence: Tensor, batch: int) -> Tuple[Tensor, int]:
    """The slots (P,) of states of the sentences (P,) in the flattened (B * Q), and Q, the most per sentence."""
    order = sentence.argsort(stable=True)
    counts = torch.bincount(sentence, minlength=batch)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[sentence[order]]
    width = max(1, int(counts.max()))
    return sentence * width + rank, width
