"""Drafts of the verifier itself, without any training."""

import torch

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, VerifyResult


class JacobiDrafter(Drafter):
    """The verifier's own predictions after a rejected draft (Santilli et al. 2023).

    They are conditioned on a wrong token, but are often right. Where there are too few, the last one is repeated.
    """

    probe_tokens, probe_calls = 3, 2  # the first call's predictions are the second's drafts

    def draft(self, verified: VerifyResult, count: int, state: None) -> Drafts:
        after = verified.accepted.unsqueeze(1) + 1 + torch.arange(count, device=verified.accepted.device)
        return Drafts(verified.greedy.gather(1, after.clamp(max=verified.greedy.size(1) - 1)))
