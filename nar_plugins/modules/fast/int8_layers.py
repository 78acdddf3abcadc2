"""The layers over a padded batch in int8 on a CPU, over its real states only and with few operations.

The products treat every state alike, so the real states of all sentences are packed, sentence after sentence, and
attention, which takes a tenth of the time, is computed for each sentence by itself. One sentence's pass takes half of
its time between the products, so the parts of a layer are looked up once. ``modules/layers.py`` has the plain form.
"""

import operator
from typing import Callable, List, NamedTuple, Optional, Sequence

import torch
import torch.nn as nn
from fairseq.modules import FairseqDropout
from torch import Tensor

from nar_plugins.modules.activation import in_place
from nar_plugins.modules.fast.block_layers import ATTENTIONS, NORMS, attended, drops, norm_function, plain_norm
from nar_plugins.modules.fast.fused import FusedLinear
from nar_plugins.modules.fast.linear import takes_quantised
from nar_plugins.modules.layers import NarDecoderLayer, NarEncoderLayer
from nar_plugins.modules.memory import Memory
from nar_plugins.modules.packing import collect, spread


class RealStates(NamedTuple):
    """The real ones of states (B, T, D), packed: (P, D)."""

    lengths: List[int]  # of every sentence, or canvas
    width: int  # T
    slots: Optional[Tensor] = None  # (P,) int64, their places among the B * T; None: all are real

    @classmethod
    def of(cls, x: Tensor, padding: Optional[Tensor]) -> "RealStates":
        """Those of x (B, T, D).

        Args:
            padding: (B, T) bool; None: there is none.
        """
        return cls([x.size(1)] * x.size(0), x.size(1)) if padding is None else cls.where(~padding)

    @classmethod
    def where(cls, real: Tensor) -> "RealStates":
        """Those where real (B, T) bool is True."""
        return cls(real.sum(1).tolist(), real.size(1), real.flatten().nonzero().squeeze(1))

    def counts(self, sentences: int, together: bool) -> List[int]:
        """The states of every sentence's canvases; ``together``: of all sentences'."""
        if together:
            return [sum(self.lengths)]
        canvases = len(self.lengths) // sentences
        return [sum(self.lengths[b * canvases : (b + 1) * canvases]) for b in range(sentences)]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (P, D)."""
        x = x.reshape(-1, x.size(-1))
        return x if self.slots is None else collect(x, self.slots)

    def unpack(self, x: Tensor) -> Tensor:
        """(P, D) -> (B, T, D), 0 at padding."""
        count = len(self.lengths)
        x = x if self.slots is None else spread(x, self.slots, count * self.width)
        return x.view(count, self.width, -1)


class Picked(NamedTuple):
    """Some of the packed states of canvases: what the last layer computes."""

    rows: Tensor  # (Q,) int64, their places among the packed ones
    real: RealStates  # they themselves, among the picked positions

    @classmethod
    def of(cls, positions: Tensor, padding: Optional[Tensor], width: int) -> "Picked":
        """Those at positions (R, n) int64, without padding.

        Args:
            padding: (R, T) bool; None: there is none. width: T.
        """
        canvases, count = positions.shape
        slots = positions + width * torch.arange(canvases, device=positions.device).unsqueeze(1)
        if padding is None:
            return cls(slots.flatten(), RealStates([count] * canvases, count))
        real = RealStates.where(~padding.gather(1, positions))
        places = (~padding).flatten().cumsum(0) - 1
        return cls(places[slots.flatten()[real.slots]], real)


class Attention(NamedTuple):
    """The functions of an attention, of states (P, D)."""

    inputs: Callable[[Tensor], Tensor]  # queries, keys and values side by side; cross-attention: queries
    output: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    heads: int
    scale: float

    def of_itself(self, x: Tensor, real: RealStates, picked: Optional[Picked] = None) -> Tensor:
        """Self-attention of every sentence: (P, D) -> (P, D), or (Q, D) of the picked states."""
        if picked is not None:
            return self.output(joined(self.of_picked(self.inputs(x), real, picked)))
        sentences, length = (len(real.lengths), real.width) if real.slots is None else (1, x.size(0))
        states = self.inputs(x).view(sentences, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        parts = [states] if real.slots is None else states.split([n for n in real.lengths if n], 3)
        return self.output(joined([attended(*part.unbind(), None, self.scale) for part in parts]))

    def of_picked(self, states: Tensor, real: RealStates, picked: Picked) -> List[Tensor]:
        """Self-attention of the picked states, (n, D) each, from the queries, keys and values of all, (P, 3 D)."""
        states = states.view(len(states), 3, self.heads, -1)
        queries, keys_values = states[:, 0].index_select(0, picked.rows), states[:, 1:]
        if real.slots is None:
            parts = [(queries.unflatten(0, (-1, picked.real.width)), keys_values.unflatten(0, (-1, real.width)))]
        else:
            each = zip(queries.split(picked.real.lengths), keys_values.split(real.lengths))
            parts = [(q.unsqueeze(0), kv.unsqueeze(0)) for q, kv in each if len(q)]
        return [attended(q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4), None, self.scale) for q, kv in parts]

    def of_sources(self, x: Tensor, lengths: List[int], keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Cross-attention: (P, D) -> (P, D).

        Args:
            lengths: queries of every part. keys, values: (sentences, H, S, D/H) of every part.
        """
        parts = zip(self.inputs(x).split(lengths), keys, values)
        heads = [
            attended(q.view(k.size(0), -1, self.heads, k.size(-1)).transpose(1, 2), k, v, None, self.scale)
            for q, k, v in parts
            if len(q)
        ]
        return self.output(joined(heads))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(n, D) each -> (P, D)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Layer(NamedTuple):
    """A layer's functions of states (P, D)."""

    self_attention: Attention
    cross_attention: Optional[Attention]
    feed_forward: Callable[[Tensor], Tensor]
    last_norm: Callable[[Tensor], Tensor]
    pre_norm: bool

    def add(self, x: Tensor, function: Callable[..., Tensor], norm: Callable[[Tensor], Tensor], *more) -> Tensor:
        """A sublayer with its norm and residual connection: (P, D) -> (P, D)."""
        x = function(norm(x) if self.pre_norm else x, *more).add_(x)
        return x if self.pre_norm else norm(x)

    def __call__(self, x: Tensor, real: RealStates, *source, picked: Optional[Picked] = None) -> Tensor:
        """(P, D) -> (P, D), or (Q, D) of the picked states; ``source``: what ``Attention.of_sources`` takes, in a
        decoder, of those that are computed.
        """
        attention = self.self_attention
        if picked is None:
            x = self.add(x, attention.of_itself, attention.norm, real)
        else:
            y = attention.of_itself(attention.norm(x) if self.pre_norm else x, real, picked)
            y.add_(x.index_select(0, picked.rows))
            x = y if self.pre_norm else attention.norm(y)
        if self.cross_attention is not None:
            x = self.add(x, self.cross_attention.of_sources, self.cross_attention.norm, *source)
        return self.add(x, self.feed_forward, self.last_norm)


class Int8Layers:
    """The layers of an encoder or of a decoder.

    Args:
        parts, weights: tell whether it is still theirs.
    """

    def __init__(self, layers: Sequence[nn.Module], parts: "Parts", weights: list):
        self.parts, self.weights = parts, weights
        self.layers = [make_layer(layer) for layer in layers]

    def states(self, x: Tensor, padding: Optional[Tensor]) -> List[Tensor]:
        """``through_encoder``, batch-first: (B, S, D) -> as many before the first layer and after every one.

        Args:
            padding: (B, S) bool; None: there is none.
        """
        real = RealStates.of(x, padding)
        states, packed = [x], real.pack(x)
        for layer in self.layers:
            packed = layer(packed, real)
            states.append(real.unpack(packed))
        return states

    def features(self, x: Tensor, padding: Optional[Tensor], memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """``through_decoder``: (R, T, D) -> (R, T or n, D).

        Args:
            padding: (R, T) bool; None: there is none.
            picked: (R, n) int64, the positions that the last layer computes; None: all.
        """
        real, last = RealStates.of(x, padding), len(self.layers) - 1
        some = None if picked is None else Picked.of(picked, padding, x.size(1))
        sentences, alike = memory.keys[0].size(0), real.slots is None and memory.allowed is None
        queries, sources = real.counts(sentences, alike), None
        if not alike:
            full = memory.allowed is None
            sources = [memory.keys[0].size(2)] * sentences if full else memory.allowed.sum(-1).flatten().tolist()
        packed = real.pack(x)
        for number, (layer, keys, values) in enumerate(zip(self.layers, memory.keys, memory.values)):
            now = some if number == last else None
            if now is not None:
                queries = now.real.counts(sentences, alike)
            source = queries, of_sentences(keys, sources), of_sentences(values, sources)
            packed = layer(packed, real, *source, picked=now)
        return (real if some is None else some.real).unpack(packed)


def of_sentences(heads: Tensor, lengths: Optional[List[int]]) -> Sequence[Tensor]:
    """Keys or values (B, H, S, D/H), padded on the right: (1, H, n, D/H) of each sentence, or those of all at once."""
    if lengths is None:
        return [heads]
    return [part[:, :, :length] for part, length in zip(heads.split(1), lengths)]


class Parts(NamedTuple):
    """What the functions of layers are made of."""

    hooks: List[dict]  # of all modules
    linears: List[nn.Module]
    fused: List[Optional[FusedLinear]]
    norms: List[nn.Module]
    dropouts: List[nn.Module]

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> "Parts":
        attentions = [getattr(layer, name) for layer in layers for name in ATTENTIONS if hasattr(layer, name)]
        linears = [each for attention in attentions for each in (attention.q_proj, attention.out_proj)]
        linears += [each for layer in layers for each in (layer.fc1, layer.fc2)]
        norms = [getattr(layer, name) for layer in layers for name in NORMS if hasattr(layer, name)]
        modules = [module for layer in layers for module in layer.modules()]
        dropouts = [module for module in modules if isinstance(module, FairseqDropout)]
        hooks = [each for module in modules for each in (module._forward_pre_hooks, module._forward_hooks)]
        return cls(hooks, linears, [layer.self_attn.fused for layer in layers], norms, dropouts)

    def plain(self) -> bool:
        """Whether they are in int8, drop nothing, and no hook of a user's would see their inputs."""
        return (
            not any(self.hooks)  # dictionaries: this is asked in every pass, of some hundred modules
            and all(getattr(linear, "in_int8", False) for linear in self.linears)
            and all(fused is not None and fused.product is not None for fused in self.fused)
            and all(map(plain_norm, self.norms))
            and not any(map(drops, self.dropouts))
        )

    def weights(self) -> list:
        """What is another object where the weights are others."""
        products = [each.product for each in (*self.linears, *self.fused)]
        return products + [norm._parameters[name] for norm in self.norms for name in ("weight", "bias")]


def fast_form(side: nn.Module) -> Optional[Int8Layers]:
    """The layers of an encoder or of a decoder; kept in its attribute ``fast`` while the weights are theirs.

    None where only the plain form is right: in other types than int8, with gradients, dropout or hooks of a user's, and
    for layers of other models.
    """
    layers = list(side.layers.children())
    if torch.is_grad_enabled() or not all(map(replaceable, layers)):
        return None
    parts = Parts.of(layers) if side.fast is None else side.fast.parts
    if not parts.plain():
        return None
    weights = parts.weights()
    if side.fast is None or not all(map(operator.is_, weights, side.fast.weights)):
        side.fast = Int8Layers(layers, parts, weights)
    return side.fast


def replaceable(layer: nn.Module) -> bool:
    """Whether a layer is one of this package's plain ones, in int8."""
    return type(layer) in (NarEncoderLayer, NarDecoderLayer) and takes_quantised(layer.fc1)


def make_layer(layer: nn.Module) -> Layer:
    """The functions of a layer of ``Parts``."""
    first, second, activation = layer.fc1.product, layer.fc2.product, in_place(layer.activation_fn)
    norms = [norm_function(getattr(layer, name)) for name in NORMS if hasattr(layer, name)]
    attentions = [getattr(layer, name) for name in ATTENTIONS if hasattr(layer, name)]
    inputs = [layer.self_attn.fused.product, *(attention.q_proj.product for attention in attentions[1:])]
    made = [
        Attention(function, attention.out_proj.product, norm, attention.num_heads, attention.scaling)
        for function, attention, norm in zip(inputs, attentions, norms)
    ]
    return Layer(
        made[0],
        made[1] if len(made) > 1 else None,
        lambda x: second(activation(first(x))),
        norms[-1],
        layer.normalize_before,
    )
