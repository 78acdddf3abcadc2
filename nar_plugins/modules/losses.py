"""The parts of a loss, summed; the criterion weighs, normalises and logs them."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.modules.precision import full


class LossPart(NamedTuple):
    """One part of a loss, summed: the loss, its negative log-likelihood without smoothing, and over how many."""

    loss: Tensor
    nll: Tensor
    count: Tensor


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
