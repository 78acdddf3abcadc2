"""The parts of a loss, summed; the criterion weighs, normalises and logs them."""
from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nar_plugins.modules.precision import full


CHUNK = 1 << 24  # logits in memory at a time, 64 MiB in float32


class LossPart(NamedTuple):
    """One part of a loss, summed: the loss, its negative log-likelihood without smoothing, and over how many."""

    loss: Tensor
    nll: Tensor
    count: Tensor


def masked_word_loss(logits: Tensor, words: Tensor, label_smoothing: float) -> LossPart:
    """Label-smoothed cross-entropy, summed: logits (M, V), words (M,) int64; the smoothing is spread over all V."""
    logits = full(logits)
    normaliser = logits.logsumexp(-1)
    nll = (normaliser - logits.gather(-1, words.unsqueeze(-1)).squeeze(-1)).sum()
    loss = nll
    if label_smoothing > 0:
        smooth = (normaliser - logits.mean(-1)).sum()
        loss = (1 - label_smoothing) * nll + label_smoothing * smooth
    return LossPart(loss, nll.detach(), torch.tensor(words.numel(), device=words.device))


def word_losses(logits: Tensor, words: Tensor, label_smoothing: float) -> Tuple[Tensor, Tensor]:
    """``masked_word_loss`` word by word: the losses and their negative log-likelihoods without smoothing, each (M,)."""
    logits = full(logits)
    normaliser = logits.logsumexp(-1)
    nll = normaliser - logits.gather(-1, words.unsqueeze(-1)).squeeze(-1)
    if label_smoothing == 0:
        return nll, nll.detach()
    return (1 - label_smoothing) * nll + label_smoothing * (normaliser - logits.mean(-1)), nll.detach()


def chunked_word_losses(
    project: Callable[[Tensor], Tensor], features: Tensor, words: Tensor, label_smoothing: float, chunk: int = CHUNK
) -> Tuple[Tensor, Tensor]:
    """``word_losses`` of features, whose logits are made in chunks and again in the backward pass.

    Args:
        project: features (n, D) -> logits (n, V).
        features: (M, D). words: (M,) int64.
        chunk: how many logits there may be at a time.
    """

    def some(states: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
        return word_losses(project(states), targets, label_smoothing)

    if words.numel() == 0:  # project once all the same, so that every parameter has a gradient
        return some(features, words)
    with torch.no_grad():
        vocabulary = project(features[:1]).size(-1)
    size = max(1, chunk // vocabulary)
    parts = zip(features.split(size), words.split(size))
    losses, nlls = zip(*(checkpoint(some, *part, use_reentrant=False) for part in parts))
    return torch.cat(losses), torch.cat(nlls)


def length_loss(lprobs: Tensor, lengths: Tensor, weights: Optional[Tensor] = None) -> LossPart:
    """Negative log-likelihood of the target lengths, summed: lprobs (B, classes), lengths (B,) int64.

    Args:
        weights: (B,), what each sentence counts in the loss.
    """
    nll = -lprobs.gather(1, lengths.unsqueeze(1)).squeeze(1)
    loss = nll if weights is None else nll * weights
    return LossPart(loss.sum(), nll.sum().detach(), torch.tensor(lengths.numel(), device=lengths.device))


def soft_word_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with distributions as targets, summed: logits and targets (M, V).

    Times the temperature's square, so that its gradient keeps its size (Hinton et al. 2015, section 2).
    """
    return -(targets * (full(logits) / temperature).log_softmax(-1)).sum() * temperature**2
