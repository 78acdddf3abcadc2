"""NAT's fine-tuning losses: an autoregressive teacher scores the model's predictions (Gu et al. 2018, section 4.3)."""

from typing import Dict, Tuple

import torch
from torch import Tensor

from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.precision import full
from nar_plugins.modules.teacher_forcing import Teacher

REWARD_SCALE = 0.1  # as in the official code


def reverse_kl(teacher: Teacher, logits: Tensor, real: Tensor) -> Tensor:
    """The model's cross-entropy under the teacher, L_RKL (equation 13), of every sentence: (B,).

    -sum_t sum_y p(y) log p_AR(y | best_<t, source), where best is the model's argmax; the teacher's part is detached.

    Args:
        logits: (B, T, V), the model's. real: (B, T) bool.
    """
    dictionary, mask = teacher.model.decoder.dictionary, teacher.mask
    pad, bos = dictionary.pad(), dictionary.bos()
    mask_index = torch.tensor([mask], device=logits.device)
    banned = torch.tensor([mask, pad, bos], device=logits.device)
    logits = full(logits).index_fill(-1, mask_index, -float("inf"))  # the teacher does not know <mask>
    best = logits.detach().index_fill(-1, banned, -float("inf")).argmax(-1)  # as generators choose
    best = best.masked_fill(~real, pad)
    teacher_lprobs = teacher.lprobs(teacher.features(best)).index_fill(-1, mask_index, 0.0)
    return -(logits.softmax(-1) * teacher_lprobs).sum(-1).masked_fill(~real, 0).sum(1)


def finetuning_losses(
    teacher: Teacher, passes: Dict[str, Tuple[Tensor, Tensor]], sampled_lprobs: Tensor, usable: Tensor
) -> Dict[str, LossPart]:
    """The two losses besides distillation.

    ``backprop`` is L_BP, the reverse KL at the aligner's fertilities. ``reinforce`` is L_RL: the reward of a sampled
    fertility is the reverse KL at the expected fertilities minus that at the sampled ones, with the batch's mean as
    baseline (as in the official code).

    Args:
        passes: logits (B, T, V) and real positions (B, T) of the decoder at ``gold``, ``sampled`` and ``expected``
            fertilities; the first with a gradient.
        sampled_lprobs: (B,), the log-probabilities of the sampled fertilities.
        usable: (B,) bool, the pairs with meaningful fertilities.
    """
    losses = {name: reverse_kl(teacher, logits, real) * usable for name, (logits, real) in passes.items()}
    tokens = (passes["gold"][1].sum(1) * usable).sum()
    reward = (losses["expected"] - losses["sampled"]).detach()
    reward = REWARD_SCALE * (reward - reward.mean()) * usable
    reinforce = -(reward * sampled_lprobs).sum()
    return {
        "backprop": LossPart(losses["gold"].sum(), losses["gold"].sum().detach(), tokens),
        "reinforce": LossPart(reinforce, reinforce.detach(), usable.sum()),
    }
