"""The layers of a stock Transformer's decoder for a few tokens a call, in float32 on a CPU, with few operations.

Weights that are kept in float16 have their own product (``half_weights.py``). Others of small products are transposed:
MKL multiplies few rows by them in down to half the time. ``modules/block_decoder.py`` has the plain form, for all else.
"""

import math
from typing import Callable, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.fast.half_weights import SMALL, half_weight_product, rounded
from nar_plugins.modules.fast.layer import Parts, attended, make_layer, may_be_plain, same
from nar_plugins.modules.fast.linear import PreparedLinear, stacked
from nar_plugins.modules.linear import (
    LARGE_WEIGHT,
    onednn_is_faster,
    onednn_threshold,
    product_by_size,
    transposed_is_faster,
)


class BlockLayers:
    """A decoder's layers, and its vocabulary projection where that is a plain one.

    It holds a copy of their weights.

    Args:
        parts: its modules. weights: tell whether it is still theirs.

    Attributes:
        vocabulary: the vocabulary projection (P, D) -> (P, V), or None.
    """

    def __init__(self, decoder, parts: Parts, weights: list):
        self.parts, self.weights = parts, weights
        self.layers = [make_layer(layer, function) for layer in decoder.layers]
        self.vocabulary = function(decoder.output_projection) if plain(decoder.output_projection) else None

    def __call__(
        self, x: Tensor, positions: Tensor, allowed: Optional[Tensor], width: int, aligned: bool, cache
    ) -> Tuple[Tensor, Tensor]:
        """The output (B, m, D) of the last layer for states (B, m, D), and its cross-attention's queries
        (B, H, m, D/H).

        Args:
            positions: (B, m) int64. allowed: a bias (B, 1, m, width), or None.
            width, aligned: as in ``KVCache.write``. cache: a ``BlockCache``.
        """
        sentences, new, dim = x.shape
        x, queries = x.reshape(-1, dim), x
        memory, visible = cache.memory, cache.memory_bias()
        for number, layer in enumerate(self.layers):
            own, cross = layer.self_attention, layer.cross_attention
            states = own.inputs(layer.before(x, own.norm)).view(sentences, new, 3, own.heads, -1)
            (cached,) = cache.inputs.write(number, positions, (states[:, :, 1:],), width, aligned)
            keys, values = cached.permute(2, 0, 3, 1, 4).unbind()
            y = attended(states[:, :, 0].transpose(1, 2), keys, values, allowed, own.scale)
            x = layer.after(x, own.output(y), own.norm)

            queries = cross.inputs(layer.before(x, cross.norm)).view(sentences, new, cross.heads, -1).transpose(1, 2)
            y = attended(queries, memory.keys[number], memory.values[number], visible, cross.scale)
            x = layer.fed_forward(layer.after(x, cross.output(y), cross.norm))
        return x.view(sentences, new, dim), queries

    def logits(self, states: Tensor) -> Tensor:
        """The vocabulary projection of states (..., D): (..., V)."""
        return self.vocabulary(states.flatten(0, -2)).unflatten(0, states.shape[:-1])


def block_layers(decoder, before: Optional[BlockLayers] = None) -> Optional[BlockLayers]:
    """A decoder's layers in the fast form; None where only the plain one is right: on other devices, in other types,
    with gradients, with dropout, with hooks of a user's, in a model that is not prepared for decoding.

    Args:
        decoder: one that ``BlockDecoder`` serves. before: the last result, returned again while the weights are its.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not may_be_plain(decoder.layers, plain):
        return None
    parts = Parts.of(decoder.layers) if before is None else before.parts
    if not parts.plain(plain):
        return None
    weights, vocabulary = parts.weights(), decoder.output_projection
    weights.append(vocabulary.product if plain(vocabulary) else None)
    return before if before is not None and same(weights, before.weights) else BlockLayers(decoder, parts, weights)


def plain(layer: nn.Module) -> bool:
    """Whether a layer is prepared, for states in float32 on a CPU, and no hook of a user's would see its input."""
    return (
        type(layer) is PreparedLinear
        and layer.in_float32
        and layer.weight.is_cpu
        and not (layer._forward_pre_hooks or layer._forward_hooks)
    )


def function(*layers: PreparedLinear) -> Callable[[Tensor], Tensor]:
    """The outputs of layers with the same input, side by side: (P, in) -> (P, sum of out). It has a copy of the
    weights, but for a large layer or one in float16, which shares the one that its own product has packed.
    """
    weight, bias = stacked(layers)
    if layers[0].dtype == torch.float16:
        if weight.numel() >= SMALL:
            return layers[0].product if len(layers) == 1 else half_weight_product(weight, bias)
        weight = rounded(weight)
    many, of_many = math.inf, None
    if onednn_is_faster():
        many = -(-onednn_threshold(weight) // weight.size(0))
        of_many = layers[0].product if len(layers) == 1 else product_by_size(weight, bias)
    elif transposed_is_faster() and len(layers) == 1 and weight.numel() >= LARGE_WEIGHT:
        many, of_many = 0, layers[0].product
    if many == 0:
        return of_many
    transposed = weight.t().contiguous()

    def product(x: Tensor) -> Tensor:
        if x.numel() >= many:
            return of_many(x)
        return torch.mm(x, transposed) if bias is None else torch.addmm(bias, x, transposed)

    return product
