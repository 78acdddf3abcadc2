"""Attention of rows of masks to the main stream and to themselves, whose weights are made again in the backward
pass.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nar_plugins.modules.precision import full


def row_attention(
    queries: Tensor,
    bias: Tensor,
    keys: Tensor,
    values: Tensor,
    own_keys: Optional[Tensor],
    own_values: Optional[Tensor],
    buckets: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(queries . (keys, own keys) + bias[buckets]) . (values, own values), the softmax at least in float32.

    Args:
        queries: (B, H, R, N, D/H), scaled. bias: (B, H, R, N, buckets), -inf for what is hidden.
        keys, values: (B, H, T, D/H), which all rows share.
        own_keys, own_values: (B, H, R, N, D/H), each row's; None: there are none.
        buckets: (B or 1, R, N, T + N) int64, of every key (T without own ones).
        dropout: probability to drop a weight.

    Returns:
        (B, H, R, N, D/H).
    """
    with torch.autocast(queries.device.type, enabled=False):  # what comes in has the type to compute in
        return _RowAttention.apply(queries, bias, keys, values, own_keys, own_values, buckets, dropout)


def row_weights(queries, bias, keys, own_keys, buckets) -> Tensor:
    """The weights (B, H, R, N, T + N), float32 or float64."""
    scores = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, queries.shape[2:4])
    if own_keys is not None:
        scores = torch.cat([scores, queries @ own_keys.transpose(-1, -2)], -1)
    return full(scores.add_(bias.gather(-1, buckets.unsqueeze(1).expand_as(scores)))).softmax(-1)


class _RowAttention(Function):
    @staticmethod
    def forward(ctx, queries, bias, keys, values, own_keys, own_values, buckets, dropout):
        weights = row_weights(queries, bias, keys, own_keys, buckets)
        kept = torch.rand_like(weights) >= dropout if dropout > 0 else None
        ctx.save_for_backward(queries, bias, keys, values, own_keys, own_values, buckets, kept)
        ctx.dropout = dropout
        weights = drop(weights, kept, dropout).to(values.dtype)
        length = keys.size(2)
        result = (weights[..., :length].flatten(2, 3) @ values).unflatten(2, queries.shape[2:4])
        return result if own_keys is None else result.add_(weights[..., length:] @ own_values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        queries, bias, keys, values, own_keys, own_values, buckets, kept = ctx.saved_tensors
        rows, length = queries.shape[2:4], keys.size(2)
        weights = row_weights(queries, bias, keys, own_keys, buckets)
        gradient = gradient.contiguous()
        flat = gradient.flatten(2, 3)

        used = drop(weights, kept, ctx.dropout).to(values.dtype)
        of_values = used[..., :length].flatten(2, 3).transpose(-1, -2) @ flat
        of_weights = (flat @ values.transpose(-1, -2)).unflatten(2, rows)
        if own_keys is not None:
            of_own_values = used[..., length:].transpose(-1, -2) @ gradient
            of_weights = torch.cat([of_weights, gradient @ own_values.transpose(-1, -2)], -1)
        del used
        of_scores = drop(of_weights.to(weights.dtype), kept, ctx.dropout)
        of_scores = weights.mul_(of_scores - (weights * of_scores).sum(-1, keepdim=True))

        index = buckets.unsqueeze(1).expand_as(of_scores)
        of_bias = torch.zeros_like(bias, dtype=of_scores.dtype).scatter_add_(-1, index, of_scores).to(bias.dtype)
        of_scores = of_scores.to(queries.dtype)
        of_main = of_scores[..., :length].flatten(2, 3)
        of_queries = (of_main @ keys).unflatten(2, rows)
        of_keys = of_main.transpose(-1, -2) @ queries.flatten(2, 3)
        if own_keys is None:
            return of_queries, of_bias, of_keys, of_values, None, None, None, None
        of_own = of_scores[..., length:]
        of_queries.add_(of_own @ own_keys)
        of_own_keys = of_own.transpose(-1, -2) @ queries
        return of_queries, of_bias, of_keys, of_values, of_own_keys, of_own_values, None, None


def drop(weights: Tensor, kept: Optional[Tensor], dropout: float) -> Tensor:
    """The weights that are kept, scaled up; all of them without dropout."""
    return weights if kept is None else weights * kept / (1 - dropout)
