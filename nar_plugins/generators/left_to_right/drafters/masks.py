"""Drafts of mask tokens: the model drafts and verifies in the same pass, with one set of weights.

The blockwise loop asks a decoder for the token after every input. A BANG decoder (Qi et al. 2021) puts several masks
after each input: the first mask is the next-token prediction, which verifies. The other masks after the last accepted
token are the next drafts.
"""

from typing import List, Sequence

from nar_plugins.generators.left_to_right.drafters.base import (
    MAX_DRAFT_TOKENS,
    Drafter,
    Drafts,
    VerifyResult,
    best_drafts,
)
from nar_plugins.modules.best_of_rows import ban


class MaskDrafter(Drafter):
    """The second and later masks of the first model.

    Args:
        decoders: every model's ``block_decoder``; the first has masks.
        banned: indices that are never proposed.
    """

    max_draft_tokens = MAX_DRAFT_TOKENS

    def __init__(self, decoders: List, banned: Sequence[int]):
        self.decoders, self.banned = decoders, banned

    def set_budget(self, count: int, min_survival: float) -> None:
        for number, decoder in enumerate(self.decoders):
            decoder.masks = 1 + count if number == 0 else 1

    def draft(self, verified: VerifyResult, count: int, state: None) -> Drafts:
        masks = verified.features[0].unflatten(-1, (-1, self.decoders[0].width))[:, 1 : count + 1]
        return best_drafts(ban(self.decoders[0].logits(masks), self.banned))

    def verify_cost(self, count: int) -> float:
        """A mask after each of the ``count`` + 1 inputs verifies the next."""
        return 2.0 * (count + 1)

    def cost_per_row(self, count: int) -> float:
        """The ``count`` + 1 inputs have as many masks each, because any of them may be the last accepted one; the
        first mask of each verifies.
        """
        return float((count + 1) * count)
