"""The log-probability of every target token on every vertex, without the logits of the whole vocabulary."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.precision import full

CPU_ROWS = 256  # vertices, and words, whose logits are computed at a time on a CPU: 256 KiB, which its cache holds
GPU_LOGITS = 1 << 24  # logits at a time on a GPU: 64 MiB in float32
GPU_CHUNKS = 8  # chunks whose gradient of the weights is added at once: each addition reads all weights


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
        table = weight.to(dtype)
        log_sums = log_sums_in_blocks if features.device.type == "cpu" else log_sums_of_rows
        sums = [log_sums(states.to(dtype), table) for states in features.split(chunk)]
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
        together = 1 if features.device.type == "cpu" else GPU_CHUNKS
        kept, chunk_grads = [], []
        rows = counts.nonzero().squeeze(1).split(ctx.chunk)
        for number, chunk in enumerate(rows, 1):
            states = features[chunk].to(ctx.dtype)
            logits = full(states @ table.t())
            part = logits.sub_(sums[chunk].unsqueeze(1)).exp_().mul_(grad[chunk].unsqueeze(1)).to(ctx.dtype)
            grad_features[chunk] = (part @ table).to(features.dtype)
            kept.append(states)
            chunk_grads.append(part)
            if len(kept) == together or number == len(rows):
                parts, inputs = (x[0] if len(x) == 1 else torch.cat(x) for x in (chunk_grads, kept))
                grad_weight.add_(parts.t() @ inputs)
                kept.clear()
                chunk_grads.clear()
        return grad_features, grad_weight.to(weight.dtype), None, None


def log_sums_of_rows(states: Tensor, table: Tensor) -> Tensor:
    """The logsumexp of ``states @ table.t()``, in float32: states (m, D), table (V, D) -> (m,)."""
    return full(states @ table.t()).logsumexp(1)


def log_sums_in_blocks(states: Tensor, table: Tensor) -> Tensor:
    """``log_sums_of_rows`` on a CPU: a block of logits is summed up while it is in the cache.

    What is subtracted before exp is the largest logit of the first block, not of all, which are not known yet. The sum
    is as exact: a number in floating point is, at any size. Only where a later logit is 80 above is it infinite.
    """
    total, shift = 0, None
    for words in table.split(CPU_ROWS):
        logits = full(states @ words.t())
        shift = logits.amax(1, keepdim=True) if shift is None else shift
        total = logits.sub_(shift).exp_().sum(1) + total
    if not bool(total.isfinite().all()):
        return log_sums_of_rows(states, table)
    return total.log_().add_(shift.squeeze(1))
