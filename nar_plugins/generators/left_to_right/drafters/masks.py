"""Drafts of masks: a model drafts for itself what its next-token mode verifies, in the same pass.

The blockwise verifier asks a decoder what follows every token of a block. A BANG decoder (Qi et al. 2021) answers with
the first of several masks after each; those after the last confirmed token are the next proposals. One set of weights,
no heads.
"""

from typing import List, Sequence

from nar_plugins.generators.base import ban
from nar_plugins.generators.left_to_right.drafters.base import MOST, Drafter, Drafts, Verified, best_of


class RowDrafter(Drafter):
    """The masks after the first one, of the first model.

    Args:
        decoders: every model's ``block_decoder``; the first has masks.
        never: indices that are never proposed.
    """

    most = MOST

    def __init__(self, decoders: List, never: Sequence[int]):
        self.decoders, self.never = decoders, never

    def ahead(self, count: int, worth: float) -> None:
        for number, decoder in enumerate(self.decoders):
            decoder.masks = 1 + count if number == 0 else 1

    def draft(self, verified: Verified, count: int, state: None) -> Drafts:
        masks = verified.features[0].unflatten(-1, (-1, self.decoders[0].width))[:, 1 : count + 1]
        return best_of(ban(self.decoders[0].logits(masks), self.never))

    def work(self, count: int) -> float:
        """After each of ``count`` + 1 tokens stand as many masks, whichever of them will be the last confirmed one."""
        return float((count + 1) ** 2)
