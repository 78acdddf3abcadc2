"""A Transformer layer as a few functions, without its modules: what the fast forms of layers are made of.

For one short sentence calling modules takes as long as computing. Here a layer's parts are looked up once, and its
queries, keys and values are one product. ``block_layers.py``, ``encoder_layers.py`` and ``real_layers.py`` differ in
the products and in how attention reads its keys; the plain form is always another one, beside each of them.
"""

import operator
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules import FairseqDropout
from torch import Tensor

from nar_plugins.modules.activation import in_place

ATTENTIONS, NORMS = (
    ("self_attn", "encoder_attn"),
    ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
)
POSITIONAL = ("positional_attn", "positional_attn_layer_norm")
ALIGNED = 16  # float32 numbers: memory is aligned to as many
Function = Callable[[Tensor], Tensor]  # of states (P, D)


class Attention(NamedTuple):
    """The functions of an attention."""

    inputs: Function  # queries, keys and values side by side; cross-attention: queries
    output: Function
    norm: Function
    heads: int
    scale: float


class PositionalAttention(NamedTuple):
    """The functions of an attention whose queries and keys are of the positions, between the other two."""

    inputs: Function  # of the positions' vectors: queries and keys side by side
    values: Function  # of the states
    output: Function
    norm: Function
    heads: int
    scale: float


class Layer(NamedTuple):
    """The functions of a layer."""

    self_attention: Attention
    cross_attention: Optional[Attention]
    feed_forward: Function
    last_norm: Function
    pre_norm: bool
    positional: Optional[PositionalAttention] = None

    def before(self, x: Tensor, norm: Function) -> Tensor:
        """The input of a sublayer."""
        return norm(x) if self.pre_norm else x

    def after(self, x: Tensor, y: Tensor, norm: Function) -> Tensor:
        """The residual connection around a sublayer with the output y, which is written to, and its norm.

        Products in half precision have outputs of their type; the states stay in float32, as under autocast.
        """
        x = y.add_(x) if y.dtype == x.dtype else x + y
        return x if self.pre_norm else norm(x)

    def fed_forward(self, x: Tensor) -> Tensor:
        """The last sublayer: (P, D) -> (P, D)."""
        return self.after(x, self.feed_forward(self.before(x, self.last_norm)), self.last_norm)


class Parts(NamedTuple):
    """The modules whose place a layer's functions take."""

    linears: List[nn.Module]
    norms: List[nn.Module]
    dropouts: List[FairseqDropout]
    hooks: List[dict]  # of all modules

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "Parts":
        """Those of encoder or decoder layers; a cross-attention's keys and values are computed elsewhere."""
        linears: List[nn.Module] = []
        for layer in layers:
            own, *cross = (getattr(layer, name) for name in ATTENTIONS if hasattr(layer, name))
            linears += [own.q_proj, own.k_proj, own.v_proj, own.out_proj]
            linears += [linear for attention in cross for linear in (attention.q_proj, attention.out_proj)]
            positional = getattr(layer, POSITIONAL[0], None)
            if positional is not None:
                linears += [positional.q_proj, positional.k_proj, positional.v_proj, positional.out_proj]
            linears += [layer.fc1, layer.fc2]
        names = (*NORMS, POSITIONAL[1])
        norms = [getattr(layer, name) for layer in layers for name in names if hasattr(layer, name)]
        modules = [module for layer in layers for module in layer.modules()]
        dropouts = [module for module in modules if isinstance(module, FairseqDropout)]
        hooks = [each for module in modules for each in (module._forward_pre_hooks, module._forward_hooks)]
        return cls(linears, norms, dropouts, hooks)

    def plain(self, linear: Callable[[nn.Module], bool]) -> bool:
        """Whether the functions compute what the modules do: all linear layers are such as ``linear`` says, nothing is
        dropped, the norms are PyTorch's, and no hook of a user's would see their inputs.
        """
        return (
            not any(self.hooks)  # dictionaries: this is asked in every pass, of some hundred modules
            and all(map(linear, self.linears))
            and not any(map(drops, self.dropouts))
            and all(type(norm) is nn.LayerNorm for norm in self.norms)
        )

    def weights(self) -> list:
        """What is another object where the weights are others: a prepared layer's product is made anew then."""
        parameters = [norm._parameters[name] for norm in self.norms for name in ("weight", "bias")]
        return [linear.product for linear in self.linears] + parameters


def may_be_plain(layers: Iterable[nn.Module], linear: Callable[[nn.Module], bool]) -> bool:
    """Whether the first of some layers is such as ``linear`` says: asked before all modules are looked at, because on a
    GPU no layer is.
    """
    first = next(iter(layers), None)
    return first is not None and linear(first.fc1)


def same(weights: list, before: list) -> bool:
    """Whether two results of ``Parts.weights`` are of the same weights."""
    return len(weights) == len(before) and all(map(operator.is_, weights, before))


def drops(dropout: FairseqDropout) -> bool:
    """Whether a dropout module drops anything."""
    return dropout.p > 0 and (dropout.training or dropout.apply_during_inference)


def make_layer(layer: nn.Module, function: Callable[..., Function]) -> Layer:
    """The functions of an encoder or decoder layer of fairseq's or of this package's.

    Args:
        function: the product of linear layers with the same input, their outputs side by side.
    """
    first, second, activation = function(layer.fc1), function(layer.fc2), in_place(layer.activation_fn)
    norms = [norm_function(getattr(layer, name)) for name in NORMS if hasattr(layer, name)]
    own, *cross = (getattr(layer, name) for name in ATTENTIONS if hasattr(layer, name))
    inputs = [function(own.q_proj, own.k_proj, own.v_proj), *(function(attention.q_proj) for attention in cross)]
    attentions = [
        Attention(product, function(attention.out_proj), norm, attention.num_heads, attention.scaling)
        for product, attention, norm in zip(inputs, (own, *cross), norms)
    ]
    return Layer(
        attentions[0],
        attentions[1] if cross else None,
        lambda x: second(activation(first(x))),
        norms[-1],
        layer.normalize_before,
        make_positional(layer, function),
    )


def make_positional(layer: nn.Module, function: Callable[..., Function]) -> Optional[PositionalAttention]:
    """The functions of a layer's positional attention; None: it has none."""
    attention = getattr(layer, POSITIONAL[0], None)
    if attention is None:
        return None
    return PositionalAttention(
        function(attention.q_proj, attention.k_proj),
        function(attention.v_proj),
        function(attention.out_proj),
        norm_function(getattr(layer, POSITIONAL[1])),
        attention.num_heads,
        attention.scaling,
    )


def norm_function(norm: nn.LayerNorm) -> Function:
    """The function of a layer norm."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def attended(queries: Tensor, keys: Tensor, values: Tensor, bias: Optional[Tensor], scale: float) -> Tensor:
    """Softmax attention of queries (B, H, m, D/H) without output projection: (B * m, D)."""
    if queries.size(0) == 1 and queries.size(3) % ALIGNED:  # its bits depend on where a sentence begins in memory
        queries, keys, values = (each.clone(memory_format=torch.contiguous_format) for each in (queries, keys, values))
    heads = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    return heads.transpose(1, 2).reshape(queries.size(0) * queries.size(2), -1)


def bias_of(allowed: Tensor) -> Tensor:
    """0 where a key is visible, -inf elsewhere: (...) bool -> (...) float32, for attention of any type."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)
