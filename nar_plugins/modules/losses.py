"""The parts of a loss, which a model's ``forward`` returns by name, and the objective that a criterion passes to it."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.modules.teacher_forcing import Teacher


class LossPart(NamedTuple):
    """One part of a batch's loss, summed over its targets: every tensor is ().

    Attributes:
        loss: what is minimised, with its gradient, its smoothing and its ``weight``.
        nll: the negative log-likelihood without smoothing, weight or gradient.
        count: int64, the number of targets.
        weight: the weight of each target in ``loss`` and in the sample size by which the criterion divides the loss of
            the global batch. 0: the part is added to the loss, but its targets are not counted (the length beside the
            tokens).
        correct: int64, how many targets have the largest logit; None: no accuracy is logged.
        skipped: int64, the number of sentence pairs that the part cannot use; None: it uses all.
    """

    loss: Tensor
    nll: Tensor
    count: Tensor
    weight: float = 0
    correct: Optional[Tensor] = None
    skipped: Optional[Tensor] = None


class TokenObjective(NamedTuple):
    """What ``nar_loss`` asks of a model's ``forward``.

    Attributes:
        label_smoothing: of the loss of the tokens, spread over the whole vocabulary.
        teacher: an autoregressive model with the batch's sources; None: no teacher.
        soft_target_weight: the share of the teacher's distributions in the loss of the tokens.
        temperature: softens the teacher's distributions and the model's.
        fertility_draws: (B, S) uniform numbers for NAT's fine-tuning with the teacher; None: no fine-tuning.
    """

    label_smoothing: float = 0.0
    teacher: Optional[Teacher] = None
    soft_target_weight: float = 0.0
    temperature: float = 1.0
    fertility_draws: Optional[Tensor] = None


LIKELIHOOD = TokenObjective()


def length_loss(lprobs: Tensor, lengths: Tensor, weights: Optional[Tensor] = None) -> LossPart:
    """Negative log-likelihood of the target lengths, summed: lprobs (B, classes), lengths (B,) int64.

    Args:
        weights: (B,), the weight of each sentence in the loss; None: 1.
    """
    nll = -lprobs.gather(1, lengths.unsqueeze(1)).squeeze(1)
    loss = nll if weights is None else nll * weights
    return LossPart(loss.sum(), nll.sum().detach(), torch.tensor(lengths.numel(), device=lengths.device))
