"""Drafts of the proposal heads that a ``blockwise`` checkpoint has."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, Verified, best_of
from nar_plugins.modules.attention import allowed_sources
from nar_plugins.modules.linear import linear

# What starting the operations of a head, a layer and the rest of a call takes, in weights that are read in that time:
# measured on one CPU core with 2 to 6 layers of 128 to 512 (benchmarks/bench_blockwise.py), not on a GPU.
HEAD, LAYER, CALL = 0.6e6, 1.4e6, 3.6e6


class HeadsDrafter(Drafter):
    """The proposal heads 2 to K of a model, at the last accepted position only (Stern et al. 2018, section 4).

    Args:
        decoder: the model's. which: the model's number in the ensemble.
        never: indices that are never proposed.
        words: propose only what stands first in the dictionary, of so many symbols; None: all.
    """

    def __init__(self, decoder, which: int, never: Sequence[int], words: Optional[int] = None):
        self.decoder, self.which, self.words = decoder, which, words
        self.most = decoder.block_size - 1
        table = decoder.output_projection.weight
        self.never = [index for index in never if index < len(table[:words])]
        # multiplications: of a proposal's projection, and of a token of the verifier
        self.table = table[:words].numel()
        self.token = sum(weight.numel() for weight in decoder.layers.parameters()) + table.numel()

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        return self.projection()

    def draft(self, verified: Verified, count: int, state: Any) -> Drafts:
        features = self.decoder.head_features(verified.features[self.which], 2, count + 1)
        return best_of(linear(features, *state))

    def projection(self) -> Tuple[Tensor, Tensor]:
        """Weight (W, D) and bias (W,) of the vocabulary projection, for the words that may be proposed."""
        projection = self.decoder.output_projection
        weight = projection.weight[: self.words]
        bias = weight.new_zeros(len(weight)) if projection.bias is None else projection.bias[: self.words].clone()
        bias[self.never] = -float("inf")
        device = weight.device.type
        if torch.is_autocast_enabled(device):  # which would cast a part of a weight for every proposal
            weight, bias = (one.to(torch.get_autocast_dtype(device)) for one in (weight, bias))
        return weight, bias

    def work(self, count: int) -> float:
        shared, each = self.decoder.proposal_heads.multiplications()
        return (shared + (each + self.table) * count) / self.token if count else 0.0


class SequentialDrafter(HeadsDrafter):
    """Sequential heads: each is told the proposal before its own, and none is asked after one that is not worth it."""

    stops = True
    worth = 0.0

    def ahead(self, count: int, worth: float) -> None:
        self.worth = worth

    def begin(self, sample: Dict, encoded: List[Dict]) -> tuple:
        out = encoded[self.which]
        sources = (*self.decoder.proposal_heads.memory(out["encoder_out"][0].transpose(0, 1)), allowed_sources(out))
        return sources, self.projection()

    def draft(self, verified: Verified, count: int, state: tuple) -> Drafts:
        sources, projection = state
        if len(verified.rows) < len(sources[0]):  # some sentences are finished
            sources = [None if part is None else part[verified.rows] for part in sources]
        head = self.decoder.proposal_heads.decoding(*sources)
        embeddings, scale = self.decoder.embed_tokens.weight, self.decoder.embed_scale
        features = base = verified.features[self.which]
        token = verified.tokens[verified.rows, verified.lengths - 1]
        found, survival = [], 0.0
        for index in range(count):
            features = head(index, base, features, F.embedding(token, embeddings) * scale)
            found.append(best_of(linear(features, *projection)))
            token = found[-1].tokens
            if self.worth > 0 and index + 1 < count:
                survival = survival + found[-1].lprobs
                if float(survival.exp().mean()) < self.worth:
                    break
        return Drafts(*(torch.stack(parts, 1) for parts in zip(*found)))

    def work(self, count: int) -> float:
        return count * (self.decoder.proposal_heads.multiplications() + self.table) / self.token

    def wait(self, count: int) -> float:
        weights = self.decoder.proposal_heads.multiplications() + self.table
        return count * (HEAD + weights) / (CALL + LAYER * len(self.decoder.layers) + self.token)
