"""A BANG decoder in the blockwise loop: every token of a block is followed by masks."""

from typing import Dict

import torch
from torch import Tensor


class BangBlockDecoder:
    """The interface of ``modules.block_decoder.BlockDecoder`` for a BANG decoder.

    The features of a token are those of the ``masks`` masks after it, concatenated.

    Args:
        decoder: of a ``bang`` model in evaluation mode.
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
        """Features (B, m, masks * D) of the tokens (B, m) at positions from ``first`` (B,) on.

        With ``weights`` also the attention (B, m, S) of the first mask after each token, which predicts the next token;
        else None.
        """
        row_starts = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
        with self.decoder.record_queries(weights) as recorded:
            features = self.decoder.decode_step(tokens, first, cache, self.masks, row_starts, last, sees_bos=True)
        if not weights:
            return features.flatten(2), None
        queries = recorded[0].unflatten(1, (tokens.size(1), self.masks))[:, :, 0]
        return features.flatten(2), self.decoder.attention(queries, cache.memory)

    def logits(self, features: Tensor) -> Tensor:
        """The next token's logits (..., V), from the first mask."""
        return self.decoder.output_layer(features[..., : self.width])
