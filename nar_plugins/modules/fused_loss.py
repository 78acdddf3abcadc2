"""Projection to the vocabulary and cross-entropy in one, without ever holding all logits.

The logits of a training batch are by far its largest tensor. In one piece they are written to memory and read back half
a dozen times. In chunks of a few targets they stay in the processor's cache. The gradient of a cross-entropy is known
with its value, so it is computed in the forward pass, and no logits are kept or computed twice. Measured on one CPU
thread with 3,100 targets, 128 dimensions, a vocabulary of 6,000 and bfloat16: forward and backward take 1.00 s in one
piece, and 0.15 s here.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.linear import CPU_ROWS
from nar_plugins.modules.precision import full

GPU_LOGITS = 1 << 24  # logits at a time on a GPU: 64 MiB in float32
GRADIENT_CHUNKS = 8  # chunks whose gradient of the weights is added at once: each addition reads all weights


class SoftTargets(NamedTuple):
    """Distributions as targets beside the M tokens, computed in chunks.

    Attributes:
        probabilities: a slice of the M targets -> their distributions (m, V), without a gradient.
        share: the weight of the cross-entropy with the distributions; that with the tokens has the rest.
        temperature: divides the logits. The cross-entropy is multiplied by its square, so that its gradient keeps its
            scale (Hinton et al. 2015, section 2).
    """

    probabilities: Callable[[slice], Tensor]
    share: float
    temperature: float


def fused_token_loss(
    projection: nn.Linear,
    features: Tensor,
    targets: Tensor,
    label_smoothing: float,
    weights: Optional[Tensor] = None,
    soft: Optional[SoftTargets] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Label-smoothed cross-entropy of ``projection(features)``; the smoothing is spread over the whole vocabulary.

    Under autocast the products have its type, the rest is float32.

    Args:
        projection: without bias, D -> V.
        features: (M, D). targets: (M,) int64.
        weights: (M,), the weight of each target in the loss; None: 1. They get no gradient.
        soft: distributions as further targets.

    Returns:
        losses: (M,), weighted, with a gradient. The gradient of the projection is computed in the forward pass, so all
            losses must have the same gradient; otherwise the backward pass raises a ValueError.
        nll: (M,), negative log-likelihoods without smoothing, weight or gradient.
        correct: (M,) bool, whether the target has the largest logit.
    """
    assert projection.bias is None, "the projection to the vocabulary has a bias, which is not served here"
    device = features.device.type
    autocast = torch.is_autocast_enabled(device)
    cast = torch.get_autocast_dtype(device)
    chunk = CPU_ROWS if device == "cpu" else max(1, GPU_LOGITS // projection.weight.size(0))
    if soft is not None and autocast:  # they are computed inside, where autocast is off
        soft = soft._replace(probabilities=torch.autocast(device, cast)(soft.probabilities))
    dtype = cast if autocast else features.dtype
    with torch.autocast(device, enabled=False):
        train = torch.is_grad_enabled()  # within a Function it never is
        return FusedTokenLoss.apply(
            features, projection.weight, targets, weights, label_smoothing, dtype, chunk, train, soft
        )


class FusedTokenLoss(torch.autograd.Function):
    """See ``fused_token_loss``; with p the softmax of the logits, y the target and e the smoothing, d loss / d logits
    is p - (1 - e) onehot(y) - e / V. With a distribution q as target and a temperature t it is t (p_t - q)."""

    @staticmethod
    def forward(ctx, features, weight, targets, weights, label_smoothing, dtype, chunk, train, soft):
        table = weight.to(dtype)
        grad_features = torch.empty_like(features) if train and ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros_like(weight, dtype=full(weight[:0]).dtype) if train and ctx.needs_input_grad[1] else None
        )
        count, losses, nlls, correct = max(1, targets.numel()), [], [], []
        room, first = None, 0  # the gradients of the logits from ``first`` on, of some chunks
        if grad_weight is not None:
            room = table.new_empty(min(count, chunk * GRADIENT_CHUNKS), len(table))
        for begin in range(0, count, chunk):
            part = slice(begin, begin + chunk)
            states, gold = features[part].to(dtype), targets[part].unsqueeze(1)
            place = None if room is None else room[begin - first : begin - first + len(states)]
            logits = full(torch.mm(states, table.t(), out=place))
            largest, of_gold = logits.amax(-1, keepdim=True), logits.gather(1, gold)
            mean = logits.mean(1, keepdim=True) if label_smoothing > 0 else None
            if soft is not None:
                teacher = soft.probabilities(part).to(logits)
                softened = (logits / soft.temperature).log_softmax(-1)
            grad = logits.sub_(largest).exp_()
            total = grad.sum(-1, keepdim=True)
            normaliser = largest + total.log()
            nll = normaliser - of_gold
            loss = nll if mean is None else nll.lerp(normaliser - mean, label_smoothing)
            if soft is not None:
                distilled = -(teacher * softened).sum(1, keepdim=True) * soft.temperature**2
                loss = loss.lerp(distilled, soft.share)
            part_weights = None if weights is None else weights[part].unsqueeze(1).to(loss)
            losses.append((loss if part_weights is None else loss * part_weights).squeeze(1))
            nlls.append(nll.squeeze(1))
            correct.append(of_gold.eq(largest).squeeze(1))
            if grad_features is None and grad_weight is None:
                continue
            grad.div_(total)
            if label_smoothing > 0:
                grad.sub_(label_smoothing / grad.size(1))
            grad.scatter_add_(1, gold, grad.new_full(gold.shape, label_smoothing - 1))
            if soft is not None:
                grad.lerp_(softened.exp_().sub_(teacher).mul_(soft.temperature), soft.share)
            if part_weights is not None:
                grad.mul_(part_weights)
            if grad.dtype != dtype:
                grad = grad.to(dtype) if place is None else place.copy_(grad)
            if grad_features is not None:
                grad_features[part] = grad @ table
            if room is not None and (part.stop - first >= len(room) or part.stop >= count):
                states = features[first : part.stop].to(dtype)
                grad_weight.add_(room[: len(states)].t() @ states)
                first = part.stop
        ctx.save_for_backward(grad_features, None if grad_weight is None else grad_weight.to(weight.dtype))
        nlls, correct = torch.cat(nlls), torch.cat(correct)
        ctx.mark_non_differentiable(nlls, correct)
        return torch.cat(losses), nlls, correct

    @staticmethod
    def backward(ctx, gradients, *others):
        grad = gradients[:1]
        if gradients.stride(0) and not bool(gradients.eq(grad).all()):  # stride 0: one number, as of a sum
            raise ValueError("the losses of one projection must count alike: give what each counts as its weight")
        grad_features, grad_weight = (None if saved is None else grad.sum() * saved for saved in ctx.saved_tensors)
        return grad_features, grad_weight, *[None] * 7
