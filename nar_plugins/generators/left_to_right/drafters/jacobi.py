"""Drafts of the verifier itself, without any training."""

import torch

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, Verified


class JacobiDrafter(Drafter):
    """What the verifier itself said after a rejected draft (Santilli et al. 2023); no training is needed.

    Those tokens rest on a wrong one, but are often right; where there are too few, the last is repeated.
    """

    def draft(self, verified: Verified, count: int, state: None) -> Drafts:
        after = verified.accepted.unsqueeze(1) + 1 + torch.arange(count, device=verified.accepted.device)
        return Drafts(verified.greedy.gather(1, after.clamp(max=verified.greedy.size(1) - 1)))
