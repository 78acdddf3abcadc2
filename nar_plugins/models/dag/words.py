"""The log-probability of every target token on every vertex, without the logits of the whole vocabulary."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.linear import CPU_ROWS
from nar_plugins.modules.precision import full

GPU_LOGITS = 1 << 24  # logits at a time on a GPU: 64 MiB in float32
GRADIENT_CHUNKS = 8  # chunks whose gradient of the weights is added at once: each addition reads all weights


def token_lprobs(projection: nn.Linear, features: Tensor, real: Tensor, target: Tensor) -> Tensor:
    """(B, T, L), float32: the t-th token on vertex v.

    Args:
        projection: without bias, D -> V.
        features: (B, L, D). real: (B, L) bool, the vertices of each graph. target: (B, T) int64.
    """
    logits = full(F.embedding(target, projection.weight) @ features.transpose(1, 2))
    normalisers = torch.zeros(real.shape, dtype=logits.dtype, device=logits.device)
    normalisers = normalisers.masked_scatter(real, normaliser(projection, features[real]).to(logits))
    return logits - normalisers.unsqueeze(1)


def normaliser(projection: nn.Linear, features: Tensor) -> Tensor:
    """The logsumexp over the vocabulary of ``projection(features)``: features (M, D) -> (M,), in float32.

    Under autocast the products have its type. The logits are computed in chunks, and again in the backward pass.
    """
    assert projection.bias is None, "the projection to the vocabulary has a bias, which is not served here"
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    chunk = CPU_ROWS if device == "cpu" else max(1, GPU_LOGITS // projection.weight.size(0))
    with torch.autocast(device, enabled=False):
        return Normaliser.apply(features, projection.weight, dtype, chunk)


class Normaliser(torch.autograd.Function):
    """See ``normaliser``. The gradient is a softmax times that of the row. Rows whose gradient is below the rounding of
    the largest have none: most vertices are on no probable path."""

    @staticmethod
    def forward(ctx, features, weight, dtype, chunk):
        table = weight.to(dtype).t()
        sums = [full(states.to(dtype) @ table).logsumexp(1) for states in features.split(chunk)]
        sums = torch.cat(sums) if sums else full(features.new_zeros(0))
        ctx.dtype, ctx.chunk = dtype, chunk
        ctx.save_for_backward(features, weight, sums)
        return sums

    @staticmethod
    def backward(ctx, grad):
        features, weight, sums = ctx.saved_tensors
        table = weight.to(ctx.dtype)
        grad_features = torch.zeros_like(features)
        grad_weight = torch.zeros_like(weight, dtype=full(weight[:0]).dtype)
        counts = grad.abs() > grad.abs().max() * torch.finfo(grad.dtype).eps / 64 if grad.numel() else grad.bool()
        kept, chunk_grads = [], []
        rows = counts.nonzero().squeeze(1).split(ctx.chunk)
        for number, chunk in enumerate(rows, 1):
            states = features[chunk].to(ctx.dtype)
            logits = full(states @ table.t())
            part = logits.sub_(sums[chunk].unsqueeze(1)).exp_().mul_(grad[chunk].unsqueeze(1)).to(ctx.dtype)
            grad_features[chunk] = (part @ table).to(features.dtype)
            kept.append(states)
            chunk_grads.append(part)
            if len(kept) == GRADIENT_CHUNKS or number == len(rows):
                grad_weight.add_(torch.cat(chunk_grads).t() @ torch.cat(kept))
                kept.clear()
                chunk_grads.clear()
        return grad_features, grad_weight.to(weight.dtype), None, None
