"""The layers of a stock Transformer's decoder for a few tokens a call, in float32 on a CPU, with few operations.

A small model's call for one sentence takes longer in calling modules and kernels than in computing. Here the parameters
are looked up once, a layer's queries, keys and values are one product, and the weights are transposed: MKL multiplies
few rows by them in down to half the time. ``modules/block_decoder.py`` has the plain form, for all else.
"""

from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.activation import in_place
from nar_plugins.modules.fast.linear import PreparedLinear, takes_quantised
from nar_plugins.modules.linear import onednn_is_faster, product_by_size

FEW = 64  # rows; for more, MKL gains nothing by a transposed weight, and oneDNN may be faster

ATTENTIONS, NORMS = (
    ("self_attn", "encoder_attn"),
    ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
)


class Layer(NamedTuple):
    """A decoder layer's functions of states (P, D)."""

    self_input: Callable[[Tensor], Tensor]  # queries, keys and values side by side
    self_output: Callable[[Tensor], Tensor]
    cross_input: Callable[[Tensor], Tensor]  # queries
    cross_output: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    norms: List[Callable[[Tensor], Tensor]]
    heads: List[int]  # of self-attention and cross-attention
    scales: List[float]
    pre_norm: bool


class BlockLayers:
    """A decoder's layers, and its vocabulary projection where that is a plain one.

    It holds a copy of their weights.

    Args:
        parts: its modules. key: tells whether the weights are still the decoder's.

    Attributes:
        vocabulary: the vocabulary projection (P, D) -> (P, V), or None.
    """

    def __init__(self, decoder, parts: "Parts", key: list):
        self.parts, self.key = parts, key
        self.layers = [make_layer(layer) for layer in decoder.layers]
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
            self_norm, cross_norm, last_norm = layer.norms
            states = layer.self_input(self_norm(x) if layer.pre_norm else x)
            states = states.view(sentences, new, 3, layer.heads[0], -1)
            (cached,) = cache.inputs.write(number, positions, (states[:, :, 1:],), width, aligned)
            keys, values = cached.permute(2, 0, 3, 1, 4).unbind()
            y = attended(states[:, :, 0].transpose(1, 2), keys, values, allowed, layer.scales[0])
            x = layer.self_output(y).add_(x)
            x = x if layer.pre_norm else self_norm(x)

            y = layer.cross_input(cross_norm(x) if layer.pre_norm else x)
            queries = y.view(sentences, new, layer.heads[1], -1).transpose(1, 2)
            y = attended(queries, memory.keys[number], memory.values[number], visible, layer.scales[1])
            x = layer.cross_output(y).add_(x)
            x = x if layer.pre_norm else cross_norm(x)

            x = layer.feed_forward(last_norm(x) if layer.pre_norm else x).add_(x)
            x = x if layer.pre_norm else last_norm(x)
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
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    parts = Parts.of(decoder) if before is None else before.parts
    if not all(map(plain, parts.linears)) or not all(map(plain_norm, parts.norms)) or any(map(drops, parts.dropouts)):
        return None
    # a layer's product is made anew when its weights change, and a norm's parameters are read in every call
    key = [layer.product for layer in parts.linears]
    key += [id(norm._parameters[name]) for norm in parts.norms for name in ("weight", "bias")]
    return before if before is not None and before.key == key else BlockLayers(decoder, parts, key)


class Parts(NamedTuple):
    """The modules of a decoder's layers that the fast form replaces."""

    linears: List[nn.Module]
    norms: List[nn.Module]
    dropouts: List[nn.Module]

    @classmethod
    def of(cls, decoder) -> "Parts":
        attentions = [getattr(layer, name) for layer in decoder.layers for name in ATTENTIONS]
        linears = [each for attention in attentions for each in (attention.q_proj, attention.out_proj)]
        linears += [each for layer in decoder.layers for each in (layer.self_attn.k_proj, layer.self_attn.v_proj)]
        linears += [each for layer in decoder.layers for each in (layer.fc1, layer.fc2)]
        if plain(decoder.output_projection):
            linears.append(decoder.output_projection)
        norms = [getattr(layer, name) for layer in decoder.layers for name in NORMS]
        return cls(linears, norms, [attention.dropout_module for attention in attentions])


def plain(layer: nn.Module) -> bool:
    """Whether a layer is prepared, in float32 on a CPU, and no hook of a user's would see its input."""
    return (
        type(layer) is PreparedLinear
        and layer.weight.dtype == torch.float32
        and layer.weight.is_cpu
        and not takes_quantised(layer)
        and unhooked(layer)
    )


def plain_norm(norm: nn.Module) -> bool:
    """Whether a layer norm is PyTorch's own, and has no hook of a user's."""
    return type(norm) is nn.LayerNorm and unhooked(norm)


def unhooked(module: nn.Module) -> bool:
    """Whether a module has no hook of a user's."""
    return not (module._forward_pre_hooks or module._forward_hooks)


def drops(dropout) -> bool:
    """Whether a dropout module of fairseq's drops anything."""
    return dropout.p > 0 and (dropout.training or dropout.apply_during_inference)


def make_layer(layer) -> Layer:
    """The functions of one of fairseq's decoder layers, all of whose linear layers are ``plain``."""
    self_attn, cross_attn = (getattr(layer, name) for name in ATTENTIONS)
    first, second, activation = function(layer.fc1), function(layer.fc2), in_place(layer.activation_fn)
    return Layer(
        function(self_attn.q_proj, self_attn.k_proj, self_attn.v_proj),
        function(self_attn.out_proj),
        function(cross_attn.q_proj),
        function(cross_attn.out_proj),
        lambda x: second(activation(first(x))),
        [norm_function(getattr(layer, name)) for name in NORMS],
        [self_attn.num_heads, cross_attn.num_heads],
        [self_attn.scaling, cross_attn.scaling],
        layer.normalize_before,
    )


def function(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The outputs of layers with the same input, side by side: (P, in) -> (P, sum of out). It has a copy of the
    weights.
    """
    weight = torch.cat([layer.weight.detach() for layer in layers]).t().contiguous()
    missing = any(layer.bias is None for layer in layers)  # all have one, or none
    bias = None if missing else torch.cat([layer.bias.detach() for layer in layers])
    of_many = product_by_size(weight.t(), bias) if onednn_is_faster() else None

    def product(x: Tensor) -> Tensor:
        if of_many is not None and x.size(0) > FEW:
            return of_many(x)
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)

    return product


def norm_function(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The function of a layer norm."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def attended(queries: Tensor, keys: Tensor, values: Tensor, bias: Optional[Tensor], scale: float) -> Tensor:
    """Softmax attention of queries (B, H, m, D/H) without output projection: (B * m, D)."""
    heads = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return heads.transpose(1, 2).reshape(queries.size(0) * queries.size(2), -1)
