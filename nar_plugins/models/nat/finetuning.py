"""NAT's fine-tuning terms: an autoregressive teacher judges what the model predicts (Gu et al. 2018, section 4.3)."""

from typing import Dict, Tuple

import torch
from torch import Tensor

from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.precision import full
from nar_plugins.modules.teacher_forcing import Teacher

REWARD_SCALE = 0.1  # of the official code


def reverse_kl(teacher: Teacher, logits: Tensor, real: Tensor) -> Tensor:
    """The model's cross-entropy under the teacher, L_RKL (equation 13), one a sentence: (B,).

    -sum_t sum_y p(y) log p_AR(y | best_<t, source), where best is the model's argmax; the teacher's part is detached.

    Args:
        logits: (B, T, V), the model's. real: (B, T) bool.
    """
    dictionary, mask = teacher.model.decoder.dictionary, teacher.mask
    pad, bos = dictionary.pad(), dictionary.bos()
    here, never = torch.tensor([mask], device=logits.device), torch.tensor([mask, pad, bos], device=logits.device)
    logits = full(logits).index_fill(-1, here, -float("inf"))  # the teacher has no opinion on <mask>
    best = (
        logits.detach().index_fill(-1, never, -float("inf")).argmax(-1).masked_fill(~real, pad)
    )  # as generators choose
    judged = teacher.lprobs(teacher.features(best)).index_fill(-1, here, 0.0)
    return -(logits.softmax(-1) * judged).sum(-1).masked_fill(~real, 0).sum(1)


def finetuning_losses(
    teacher: Teacher, passes: Dict[str, Tuple[Tensor, Tensor]], sampled_lprobs: Tensor, usable: Tensor
) -> Dict[str, LossPart]:
    """The two terms besides the distillation term.

    ``backprop`` is L_BP, the reverse KL at the aligner's fertilities; ``reinforce`` is L_RL: a sampled fertility is as
    good as its reverse KL is below that of the expected fertilities, less the batch's mean (the official code's
    baseline).

    Args:
        passes: logits (B, T, V) and real positions (B, T) of the decoder at ``gold``, ``sampled`` and ``expected``
            fertilities; the first with a gradient.
        sampled_lprobs: (B,), of the sampled fertilities.
        usable: (B,) bool, the pairs whose fertilities mean something.
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
