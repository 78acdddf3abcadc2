"""Drafts of the proposal heads that a ``blockwise`` checkpoint has."""

import math
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from nar_plugins.generators.left_to_right.drafters.base import (
    DRAFT,
    Drafter,
    Drafts,
    VerifyResult,
    best_drafts,
    fixed_weights,
    token_weights,
)
from nar_plugins.models.blockwise.sequential_heads import Products
from nar_plugins.modules.attention import allowed_sources
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.linear import PreparedLinear
from nar_plugins.modules.fast.prepare import versions
from nar_plugins.modules.fast.rough import (
    SHARE,
    as_autocast,
    exact_product,
    faster_in_half,
    faster_in_int8,
    rough_product,
)
from nar_plugins.modules.linear import linear


class HeadsDrafter(Drafter):
    """The proposal heads 2 to K of a model, at the last accepted position only (Stern et al. 2018, section 4).

    Args:
        decoder: the model's. model_index: the model's index in the ensemble.
        banned: indices that are never proposed.
        vocab_size: the heads propose the first symbols of the dictionary only, this many; None: all.
        rough: large products are in int8 where that runs; the drafts differ a little from those in float32.
    """

    def __init__(
        self, decoder, model_index: int, banned: Sequence[int], vocab_size: Optional[int] = None, rough: bool = False
    ):
        self.decoder, self.model_index, self.vocab_size = decoder, model_index, vocab_size
        self.max_draft_tokens = decoder.block_size - 1
        weight = decoder.output_projection.weight
        self.rough = rough and int8_lacks(weight.device) is None
        self.banned = [index for index in banned if index < len(weight[:vocab_size])]
        # multiplications of a token in the verifier; the fixed cost of a call
        self.token_cost, self.call_cost = token_weights(decoder), fixed_weights(decoder)
        self.stamp: Optional[tuple] = None  # tells the weights of the products from others

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        self.update()
        return self.projection

    def draft(self, verified: VerifyResult, count: int, state: Any) -> Drafts:
        features = self.decoder.head_features(verified.features[self.model_index], 2, count + 1)
        return best_drafts(state(features))

    def update(self) -> None:
        """Make the products again where the weights are not those of the last batch."""
        layer, parameters = self.decoder.output_projection, list(self.decoder.proposal_heads.parameters())
        # a prepared layer's product is made anew also where a training has changed the weights
        product = layer.product if isinstance(layer, PreparedLinear) else None
        autocast = torch.is_autocast_enabled(layer.weight.device.type)
        stamp = (product, autocast, *map(Tensor.data_ptr, parameters), *versions(parameters))
        if product is None or stamp != self.stamp:
            self.make_products()
            self.stamp = stamp

    def make_products(self) -> None:
        """Set the products that drafts need."""
        self.projection = self.make_projection()

    def make_projection(self) -> Callable[[Tensor], Tensor]:
        """The vocabulary projection of the W symbols that may be proposed, (..., D) -> (..., W); banned ones at
        -inf."""
        projection = self.decoder.output_projection
        weight = projection.weight[: self.vocab_size]
        if projection.bias is None:
            bias = weight.new_zeros(len(weight))
        else:
            bias = projection.bias[: self.vocab_size].clone()
        bias[self.banned] = -float("inf")
        if self.projects_roughly():
            product = rough_product(weight)
            return lambda features: product(features, bias)
        if self.vocab_size is None and isinstance(projection, PreparedLinear):  # it keeps its weight packed
            ban = bias if projection.bias is None else bias - projection.bias
            return lambda features: projection(features).add_(ban)
        weight, bias = as_autocast(weight), as_autocast(bias)
        return lambda features: linear(features, weight, bias)

    def projects_roughly(self) -> bool:
        """Whether the vocabulary projection of drafts is in fewer bits than the model's."""
        projection = self.decoder.output_projection
        if not self.rough or not isinstance(projection, PreparedLinear) or projection.in_int8:
            return False
        weight = projection.weight[: self.vocab_size]
        return faster_in_int8(weight) or (projection.dtype != torch.float16 and faster_in_half(weight))

    @property
    def projection_cost(self) -> float:
        """The multiplications in float32 that take as long as the projection of a draft."""
        weight = self.decoder.output_projection.weight[: self.vocab_size]
        return weight.numel() * (SHARE if self.projects_roughly() and faster_in_int8(weight) else 1.0)

    def cost_per_row(self, count: int) -> float:
        shared, per_head = self.decoder.proposal_heads.multiplications()
        return (shared + (per_head + self.projection_cost) * count) / self.token_cost if count else 0.0

    def fixed_cost(self, count: int) -> float:
        shared, per_head = self.decoder.proposal_heads.multiplications()
        return (DRAFT + shared + per_head * count + self.projection_cost) / self.call_cost if count else 0.0


class SequentialDrafter(HeadsDrafter):
    """Sequential heads: each is given the draft before its own. No head runs after ``min_survival`` is reached."""

    adaptive_length = True
    min_survival = 0.0

    def set_budget(self, count: int, min_survival: float) -> None:
        self.min_survival = min_survival

    def make_products(self) -> None:
        super().make_products()
        product = rough_product if self.rough else exact_product
        self.head_products = self.decoder.proposal_heads.decoding_products(self.decoder.embed_scale, product)

    def begin(self, sample: Dict, encoded: List[Dict]) -> "SequentialState":
        self.update()
        out = encoded[self.model_index]
        sources = (*self.decoder.proposal_heads.memory(out["encoder_out"][0].transpose(0, 1)), allowed_sources(out))
        return SequentialState(self.decoder, self.head_products, sources)

    def draft(self, verified: VerifyResult, count: int, state: "SequentialState") -> Drafts:
        base = verified.features[self.model_index]
        head, projection = state.heads_after(verified.sentences)(base), self.projection
        embed, features = self.decoder.embed_tokens, base
        token = verified.tokens[verified.sentences, verified.lengths - 1]
        drafts, survival_lprobs = [], [0.0] * len(base)
        for index in range(count):
            features = head(index, features, embed(token))
            drafts.append(best_drafts(projection(features)))
            token = drafts[-1].tokens
            if self.min_survival > 0 and index + 1 < count:
                survival_lprobs = list(map(sum, zip(survival_lprobs, drafts[-1].lprobs.tolist())))
                if sum(map(math.exp, survival_lprobs)) < self.min_survival * len(base):
                    break
        return Drafts(*(torch.stack(parts, 1) for parts in zip(*drafts)))

    @property
    def draft_cost(self) -> float:
        """The multiplications in float32 that take as long as a head and its projection."""
        weights = self.decoder.proposal_heads.weights()
        shares = [SHARE if self.rough and faster_in_int8(weight) else 1.0 for weight in weights]
        return self.projection_cost + sum(weight.numel() * share for weight, share in zip(weights, shares))

    def cost_per_row(self, count: int) -> float:
        return count * self.draft_cost / self.token_cost

    def fixed_cost(self, count: int) -> float:
        return count * (DRAFT + self.draft_cost) / self.call_cost

    def begin_cost_per_token(self) -> float:
        attention = self.decoder.proposal_heads.encoder_attn
        weights = attention.k_proj.weight.numel() + attention.v_proj.weight.numel()
        return weights / self.token_cost


class SequentialState:
    """The heads of a batch, for the sentences that are still active.

    Args:
        decoder: the model's. products: of its heads.
        sources: keys and values of all B sentences, and the visible ones or None.
    """

    def __init__(self, decoder, products: Products, sources: Sequence[Optional[Tensor]]):
        self.decoder, self.products, self.sources = decoder, products, sources
        self.sentences: Optional[Tensor] = None  # those of ``sources``; None: all
        self.decoding: Optional[Callable] = None

    def heads_after(self, sentences: Tensor) -> Callable:
        """``SequentialHeads.decoding`` for some sentences (b,) int64 in rising order, among those of the last call."""
        if len(sentences) < len(self.sources[0]):
            kept = sentences if self.sentences is None else torch.searchsorted(self.sentences, sentences)
            self.sources = [None if part is None else part[kept] for part in self.sources]
            self.sentences, self.decoding = sentences, None
        if self.decoding is None:
            self.decoding = self.decoder.proposal_heads.decoding(*self.sources, self.products)
        return self.decoding
