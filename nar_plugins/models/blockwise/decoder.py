"""The decoder of blockwise parallel decoding: fairseq's, with proposal heads (Stern et al. 2018, section 6)."""

from typing import Callable

import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

from nar_plugins.models.blockwise.parallel_heads import ProposalHeads
from nar_plugins.models.blockwise.sequential_heads import SequentialHeads


class BlockwiseDecoder(TransformerDecoderBase):
    """fairseq's decoder with proposal heads. ``forward`` is head 1, an ordinary next-token model, so fairseq's
    own search and scoring work.

    Heads count from 1, as in the paper: head i predicts the token i positions ahead. Head 1 is the identity where the
    base is frozen (the output is then exactly the base's), where it is the only head, or where the heads are
    ``sequential``. Otherwise it is learned.
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.block_size = cfg.block_size
        self.sequential = cfg.block_head == "sequential"
        identity = cfg.freeze_base or self.block_size == 1 or self.sequential
        self.learned_from = 2 if identity else 1  # the first head with parameters
        learned = self.block_size + 1 - self.learned_from
        width = self.output_embed_dim
        hidden = cfg.block_ffn_dim or cfg.decoder.ffn_embed_dim
        activation_dropout = cfg.activation_dropout or cfg.relu_dropout or 0.0
        self.proposal_heads = None
        if learned and self.sequential:
            self.proposal_heads = SequentialHeads(
                learned,
                width,
                embed_tokens.embedding_dim,
                cfg.encoder.embed_dim,
                hidden,
                cfg.decoder.attention_heads,
                cfg.dropout,
                cfg.attention_dropout,
                activation_dropout,
            )
        elif learned:
            self.proposal_heads = ProposalHeads(learned, width, hidden, cfg.block_head, cfg.dropout, activation_dropout)

    def output_layer(self, features: Tensor) -> Tensor:
        """Head 1: the decoder's features (..., D) -> logits (..., V)."""
        return self.output_projection(self.first_head(features))

    def first_head(self, features: Tensor) -> Tensor:
        """The states of head 1 for ``output_projection``: (..., D) -> (..., D)."""
        return self.head_features(features, 1, 1).squeeze(-2)

    def head_features(self, features: Tensor, first: int, last: int) -> Tensor:
        """The states of heads ``first`` to ``last``, inclusive, for ``output_projection``: (..., D) -> (..., heads, D).

        Of sequential heads only head 1 depends on the features alone; ``sequential_head`` is for the others.
        """
        identity = [features.unsqueeze(-2)] if first < self.learned_from else []
        first = max(first, self.learned_from)
        if first > last:
            return identity[0]
        learned = self.proposal_heads(features, first - self.learned_from, last + 1 - self.learned_from)
        return torch.cat([*identity, learned], -2)

    def sequential_head(
        self, head: int, base: Tensor, state: Tensor, tokens: Tensor, cross_attention: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The states (P, D) of sequential head 2 or later, given the previous tokens (P,); see ``SequentialHeads``."""
        return self.proposal_heads(head - 2, base, state, self.embed_scale * self.embed_tokens(tokens), cross_attention)
