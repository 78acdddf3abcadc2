"""BANG drafts for itself: its masks propose what its next-token mode verifies, in the same pass (policy
``verify``).

The blockwise verifier asks a decoder what follows every token of a block. A BANG decoder answers with the first of
several masks after each; those after the last confirmed token are the next proposals. One set of weights, no heads.
"""

from typing import Dict, List

import torch
from torch import Tensor

from nar_plugins.generators.left_to_right.drafters.base import MOST, Drafter, Drafts, Verified, best_of


class BangBlocks:
    """What ``modules.block_decoder.BlockDecoder`` is for a stock decoder.

    The features of a token are those of the masks after it, one behind the other.

    Args:
        decoder: a ``bang`` model's, in evaluation mode.
    """

    def __init__(self, decoder):
        self.decoder, self.masks = decoder, 1
        self.width = decoder.embed_tokens.embedding_dim

    def start(self, encoder_out: Dict):
        """The cache of a batch."""
        return self.decoder.start(encoder_out)

    def __call__(
        self, tokens: Tensor, first: Tensor, least: int, last: int, longest: int, cache, weights: bool = False
    ) -> tuple:
        """Features (B, m, masks * D) of the tokens (B, m) at positions from ``first`` (B,) on; with ``weights`` the
        attention (B, m, S) of the first mask after each, which predicts what follows, else None."""
        rows = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
        with self.decoder.queries(weights) as asked:
            features = self.decoder.block(tokens, first, cache, self.masks, rows, last, sees_start=True)
        if not weights:
            return features.flatten(2), None
        queries = asked[0].unflatten(1, (tokens.size(1), self.masks))[:, :, 0]
        return features.flatten(2), self.decoder.attention(queries, cache.memory)

    def logits(self, features: Tensor) -> Tensor:
        """What follows: the first mask's (..., V)."""
        return self.decoder.output_layer(features[..., : self.width])


class RowDrafter(Drafter):
    """The masks after the first one, of the first model.

    Args:
        decoders: every model's ``BangBlocks``.
        mask, pad: indices that are never proposed.
    """

    most = MOST

    def __init__(self, decoders: List[BangBlocks], mask: int, pad: int):
        self.decoders, self.never = decoders, [mask, pad]

    def ahead(self, count: int, worth: float) -> None:
        for number, decoder in enumerate(self.decoders):
            decoder.masks = 1 + count if number == 0 else 1

    def draft(self, verified: Verified, count: int, state: None) -> Drafts:
        masks = verified.features[0].unflatten(-1, (-1, self.decoders[0].width))[:, 1 : count + 1]
        logits = self.decoders[0].decoder.output_layer(masks)
        for index in self.never:
            logits[..., index] = -float("inf")
        return best_of(logits)

    def work(self, count: int) -> float:
        """After each of ``count`` + 1 tokens stand as many masks, whichever of them will be the last confirmed one."""
        return float((count + 1) ** 2)


def has_rows(model) -> bool:
    """Whether a model's decoder predicts masks after any of its tokens, as ``bang`` does."""
    return hasattr(model.decoder, "block")
