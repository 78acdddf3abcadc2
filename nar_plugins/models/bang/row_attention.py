"""Attention of rows of masks to the main stream and to the masks of their row.

The weights are not kept for the backward pass but computed again in it.
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
    mask_keys: Optional[Tensor],
    mask_values: Optional[Tensor],
    buckets: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(queries . (keys, mask keys) + bias[buckets]) . (values, mask values); the softmax at least in float32.

    Args:
        queries: (B, H, R, N, D/H), scaled. bias: (B, H, R, N, buckets), -inf for what is hidden.
        keys, values: (B, H, T, D/H), of the main stream, shared by all rows.
        mask_keys, mask_values: (B, H, R, N, D/H), of the masks of each row; None: the main stream only.
        buckets: (B or 1, R, N, T + N) int64, the bucket of every key ((.., T) without mask keys).
        dropout: probability to drop a weight.

    Returns:
        (B, H, R, N, D/H).
    """
    with torch.autocast(queries.device.type, enabled=False):  # the inputs have the type to compute in
        return _RowAttention.apply(queries, bias, keys, values, mask_keys, mask_values, buckets, dropout)


def row_weights(queries, bias, keys, mask_keys, buckets) -> Tensor:
    """The weights (B, H, R, N, T + N), float32 or float64; the arguments are those of ``row_attention``."""
    scores = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, queries.shape[2:4])
    if mask_keys is not None:
        scores = torch.cat([scores, queries @ mask_keys.transpose(-1, -2)], -1)
    return full(scores.add_(bias.gather(-1, buckets.unsqueeze(1).expand_as(scores)))).softmax(-1)


class _RowAttention(Function):
    @staticmethod
    def forward(ctx, queries, bias, keys, values, mask_keys, mask_values, buckets, dropout):
        weights = row_weights(queries, bias, keys, mask_keys, buckets)
        kept = torch.rand_like(weights) >= dropout if dropout > 0 else None
        ctx.save_for_backward(queries, bias, keys, values, mask_keys, mask_values, buckets, kept)
        ctx.dropout = dropout
        weights = drop(weights, kept, dropout).to(values.dtype)
        length = keys.size(2)
        result = (weights[..., :length].flatten(2, 3) @ values).unflatten(2, queries.shape[2:4])
        return result if mask_keys is None else result.add_(weights[..., length:] @ mask_values)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        queries, bias, keys, values, mask_keys, mask_values, buckets, kept = ctx.saved_tensors
        shape, length = queries.shape[2:4], keys.size(2)
        weights = row_weights(queries, bias, keys, mask_keys, buckets)
        grad = grad.contiguous()
        flat = grad.flatten(2, 3)

        dropped = drop(weights, kept, ctx.dropout).to(values.dtype)
        grad_values = dropped[..., :length].flatten(2, 3).transpose(-1, -2) @ flat
        grad_weights = (flat @ values.transpose(-1, -2)).unflatten(2, shape)
        if mask_keys is not None:
            grad_mask_values = dropped[..., length:].transpose(-1, -2) @ grad
            grad_weights = torch.cat([grad_weights, grad @ mask_values.transpose(-1, -2)], -1)
        del dropped
        grad_scores = drop(grad_weights.to(weights.dtype), kept, ctx.dropout)
        grad_scores = weights.mul_(grad_scores - (weights * grad_scores).sum(-1, keepdim=True))

        index = buckets.unsqueeze(1).expand_as(grad_scores)
        grad_bias = torch.zeros_like(bias, dtype=grad_scores.dtype).scatter_add_(-1, index, grad_scores).to(bias.dtype)
        grad_scores = grad_scores.to(queries.dtype)
        grad_main = grad_scores[..., :length].flatten(2, 3)
        grad_queries = (grad_main @ keys).unflatten(2, shape)
        grad_keys = grad_main.transpose(-1, -2) @ queries.flatten(2, 3)
        if mask_keys is None:
            return grad_queries, grad_bias, grad_keys, grad_values, None, None, None, None
        grad_masks = grad_scores[..., length:]
        grad_queries.add_(grad_masks @ mask_keys)
        grad_mask_keys = grad_masks.transpose(-1, -2) @ queries
        return grad_queries, grad_bias, grad_keys, grad_values, grad_mask_keys, grad_mask_values, None, None


def drop(weights: Tensor, kept: Optional[Tensor], dropout: float) -> Tensor:
    """Dropout with a given mask: the kept weights, scaled up; all weights where ``kept`` is None."""
    return weights if kept is None else weights * kept / (1 - dropout)
