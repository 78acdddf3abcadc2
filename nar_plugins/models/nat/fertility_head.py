"""Fertilities: the number of target tokens aligned to a source token (Gu et al. 2018, section 3.3)."""

import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.precision import full

FERTILITIES = 50  # classes: 0 to 49, as in the official code


class FertilityHead(nn.Linear):
    """p(fertility | source token): one linear layer on the top state of every source token."""

    def __init__(self, embed_dim: int):
        super().__init__(embed_dim, FERTILITIES)

    def forward(self, states: Tensor) -> Tensor:
        """Encoder states (S, B, D) -> log-probabilities (B, S, 50), float32 (or float64)."""
        return full(super().forward(states)).log_softmax(-1).transpose(0, 1)


def fertility_loss(lprobs: Tensor, fertilities: Tensor, predicted: Tensor) -> LossPart:
    """Negative log-likelihood, summed; a fertility above 49 is trained as 49.

    Args:
        lprobs: (B, S, 50). fertilities: (B, S) int64.
        predicted: (B, S) bool, the tokens whose fertility is predicted: not ``</s>``, whose fertility is always 1.
    """
    classes = fertilities.clamp(max=FERTILITIES - 1)
    nll = -lprobs.gather(-1, classes.unsqueeze(-1)).squeeze(-1)[predicted].sum()
    return LossPart(nll, nll.detach(), predicted.sum())
