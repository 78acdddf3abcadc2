"""NAT's fine-tuning terms: an autoregressive teacher judges what the model predicts (Gu et al. 2018, section 4.3)."""

from typing import Dict

import torch
from torch import Tensor

from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.precision import full
from nar_plugins.modules.teacher_forcing import encode_source, forced_features, forced_lprobs

REWARD_SCALE = 0.1  # of the official code


def reverse_kl(teacher, encoded: Dict, logits: Tensor, real: Tensor, mask: int) -> Tensor:
    """The model's cross-entropy under the teacher, L_RKL (equation 13), one a sentence: (B,).

    -sum_t sum_y p(y) log p_AR(y | best_<t, source), where best is the model's argmax; the teacher's part is detached.

    Args:
        encoded: of the teacher's encoder. logits: (B, T, V), the model's. real: (B, T) bool.
    """
    dictionary = teacher.decoder.dictionary
    pad, bos, eos = dictionary.pad(), dictionary.bos(), dictionary.eos()
    here, never = torch.tensor([mask], device=logits.device), torch.tensor([mask, pad, bos], device=logits.device)
    logits = full(logits).index_fill(-1, here, -float("inf"))  # the teacher has no opinion on <mask>
    best = (
        logits.detach().index_fill(-1, never, -float("inf")).argmax(-1).masked_fill(~real, pad)
    )  # as generators choose
    with torch.no_grad():
        judged = forced_lprobs(teacher, forced_features(teacher, encoded, best, pad, eos), mask).index_fill(
            -1, here, 0.0
        )
    return -(logits.softmax(-1) * judged).sum(-1).masked_fill(~real, 0).sum(1)


def finetune_parts(teacher, sample: Dict, net_output: Dict, mask: int) -> Dict[str, LossPart]:
    """The two terms besides the distillation term.

    ``backprop`` is L_BP, the reverse KL at the aligner's fertilities; ``reinforce`` is L_RL: a sampled fertility is as
    good as its reverse KL is below that of the expected fertilities, less the batch's mean (the official code's
    baseline).

    Args:
        net_output: what ``NatModel.forward`` returns for ``fertility_draws``: ``passes``, logits and real positions by
            name, and ``sampled_lprobs`` (B,), of the sampled fertilities.
    """
    source, usable = sample["net_input"], net_output["usable"]
    with torch.no_grad():
        encoded = encode_source(teacher, source["src_tokens"], teacher.encoder.padding_idx)
    losses = {
        name: reverse_kl(teacher, encoded, logits, real, mask) * usable
        for name, (logits, real) in net_output["passes"].items()
    }
    tokens = (net_output["passes"]["gold"][1].sum(1) * usable).sum()
    reward = (losses["expected"] - losses["sampled"]).detach()
    reward = REWARD_SCALE * (reward - reward.mean()) * usable
    reinforce = -(reward * net_output["sampled_lprobs"]).sum()
    return {
        "backprop": LossPart(losses["gold"].sum(), losses["gold"].sum().detach(), tokens),
        "reinforce": LossPart(reinforce, reinforce.detach(), usable.sum()),
    }
