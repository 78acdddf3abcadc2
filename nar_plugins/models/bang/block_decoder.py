"""A BANG decoder under the blockwise loop: every token of a block is followed by masks of its own."""

from typing import Dict

import torch
from torch import Tensor


class BangBlocks:
    """What ``modules.block_decoder.BlockDecoder`` is for a stock decoder.

    The features of a token are those of the masks after it, one behind the other.

    Args:
        decoder: a ``bang`` model's, in evaluation mode.
    """

    proposes = "masks"

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
