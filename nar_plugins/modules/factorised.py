"""A table of words as a product of two: few numbers a word, and one matrix that makes a state's width of them.

It is the factorised embedding of ALBERT (Lan et al. 2020, section 3.1), of the tied table of source, target and output:
V D weights become V K + 2 K D. ``nar-prune --embedding-rank`` makes it of a trained table (V, D): of the D directions
those K that keep most of the words of the training data, each as often as it occurs there.
"""

from typing import Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor


class FactorisedEmbedding(nn.Module):
    """(...) int64 -> (..., D), in the place of an ``nn.Embedding``.

    Args:
        symbols: V. rank: K. dim: D. padding: the index of padding, whose embedding is 0.
    """

    def __init__(self, symbols: int, rank: int, dim: int, padding: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = symbols, dim, padding
        self.embed_tokens = nn.Embedding(symbols, rank, padding)  # by its name loading and preparing know it
        self.widen = nn.Linear(rank, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.widen(self.embed_tokens(tokens))


class FactorisedProjection(nn.Module):
    """States (..., D) -> logits (..., V), in the place of the output projection, whose table is the embedding's."""

    def __init__(self, table: FactorisedEmbedding):
        super().__init__()
        rank = table.embed_tokens.embedding_dim
        self.narrow = nn.Linear(table.embedding_dim, rank, bias=False)
        self.output_projection = nn.Linear(rank, table.num_embeddings, bias=False)
        self.output_projection.weight = table.embed_tokens.weight

    def forward(self, states: Tensor) -> Tensor:
        return self.output_projection(self.narrow(states))


def plain_projection(projection: nn.Module, states: Tensor) -> Tuple[nn.Linear, Tensor]:
    """A linear layer and its input whose product is ``projection(states)``: losses read the layer's weight."""
    if isinstance(projection, FactorisedProjection):
        return projection.output_projection, projection.narrow(states)
    return projection, states


def is_tied(model: nn.Module) -> bool:
    """Whether one ``nn.Embedding`` is the table of source, target and output, and nothing else projects."""
    encoder, decoder = model.encoder, model.decoder
    table, projection = encoder.embed_tokens, decoder.output_projection
    return (
        type(table) is nn.Embedding
        and table is decoder.embed_tokens
        and type(projection) is nn.Linear
        and projection.weight is table.weight
    )


@torch.no_grad()
def factorise(model: nn.Module, rank: int, counts: Optional[Tensor] = None) -> None:
    """Replace the tied table (V, D) of a model by an approximation of a rank.

    It has the least squared error, summed over the words (Eckart and Young 1936, for rows with weights).

    Args:
        model: one that ``is_tied``. rank: K. counts: (V,), how often each word counts; None: once.
    """
    weight = model.encoder.embed_tokens.weight.detach()
    table = FactorisedEmbedding(*weight.shape[:1], rank, weight.size(1), model.encoder.embed_tokens.padding_idx)
    words = weight.double()
    weighted = words if counts is None else words * counts.to(words).sqrt().unsqueeze(1)
    directions = torch.linalg.svd(weighted, full_matrices=False).Vh[:rank]
    table.embed_tokens.weight.copy_(words @ directions.t())
    table.widen.weight.copy_(directions.t())
    projection = FactorisedProjection(table)
    projection.narrow.weight.copy_(directions)
    model.encoder.embed_tokens = model.decoder.embed_tokens = table.to(weight)
    model.decoder.output_projection = projection.to(weight)
