"""The layers over a padded batch on a CPU, in int8, bfloat16 and float32, over its real states, with few operations.

The products treat every state alike, so the real states of all sentences are packed, sentence after sentence, and
attention, which takes a tenth of the time, is computed for each sentence by itself. In int8 a sentence's states are so
the same in every batch, bit for bit: a last bit could become a step of the next quantisation, and another word. In the
other types a batch with little padding is computed as it is: one call of attention costs less than one for each
sentence. ``modules/layers.py`` has the plain form.
"""

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.fast.block_layers import function as of_few_rows
from nar_plugins.modules.fast.block_layers import plain
from nar_plugins.modules.fast.fused import FusedLinear
from nar_plugins.modules.fast.layer import (
    POSITIONAL,
    Attention,
    Function,
    Layer,
    Parts,
    PositionalAttention,
    attended,
    bias_of,
    make_layer,
    may_be_plain,
    same,
)
from nar_plugins.modules.fast.linear import PreparedLinear, in_int8, product, stacked
from nar_plugins.modules.linear import LARGE_WEIGHT
from nar_plugins.modules.memory import Memory
from nar_plugins.modules.packing import collect, spread

# Multiplications that take as long as a sentence's own calls of attention in a layer; 0: sentences are always packed
PACKING = {torch.float32: 1 << 20, torch.float16: 1 << 20, torch.bfloat16: 3 << 20, torch.int8: 0}

FEW_ROWS = (torch.float32, torch.float16)  # on CPUs the states are float32 in both


class RealStates(NamedTuple):
    """The real ones of states (B, T, D), packed: (P, D)."""

    lengths: List[int]  # of every sentence, or canvas
    width: int  # T
    slots: Optional[Tensor] = None  # (P,) int64, their places among the B * T; None: all are computed
    bias: Optional[Tensor] = None  # (B, 1, 1, T) float32, of attention, where padding is computed, too

    @classmethod
    def of(cls, x: Tensor, padding: Optional[Tensor], packing: int = 0) -> "RealStates":
        """Those of x (B, T, D).

        Args:
            padding: (B, T) bool; None: there is none. packing: of ``PACKING``.
        """
        if padding is None:
            return cls([x.size(1)] * x.size(0), x.size(1))
        real = cls.where(~padding)
        if packing == 0 or len(padding) * packing < (padding.numel() - sum(real.lengths)) * 12 * x.size(2) ** 2:
            return real
        return cls([x.size(1)] * x.size(0), x.size(1), None, bias_of(~padding[:, None, None]))

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
    def of(cls, positions: Tensor, padding: Optional[Tensor], width: int, ragged: bool = False) -> "Picked":
        """Those at positions (R, n) int64, without padding.

        Args:
            padding: (R, T) bool; None: there is none. width: T.
            ragged: a canvas's first position, repeated, stands for none, so that a canvas has as many in every batch.
        """
        canvases, count = positions.shape
        slots = positions + width * torch.arange(canvases, device=positions.device).unsqueeze(1)
        kept = torch.ones_like(positions, dtype=torch.bool) if padding is None else ~padding.gather(1, positions)
        if ragged:
            kept[:, 1:] &= positions[:, 1:] != positions[:, :1]
        if padding is None and bool(kept.all()):
            return cls(slots.flatten(), RealStates([count] * canvases, count))
        real = RealStates.where(kept)
        rows = slots.flatten()[real.slots]
        return cls(rows if padding is None else ((~padding).flatten().cumsum(0) - 1)[rows], real)


def of_itself(
    attention: Attention, x: Tensor, real: RealStates, picked: Optional[Picked] = None, hides_itself: bool = False
) -> Tensor:
    """Self-attention of every sentence: (P, D) -> (P, D), or (Q, D) of the picked states.

    Args:
        hides_itself: a state does not see itself, unless it is a sentence's only one; then nothing is picked.
    """
    states, heads = attention.inputs(x), attention.heads
    if picked is not None:
        parts = of_picked(states.view(len(x), 3, heads, -1), real, picked)
    else:
        parts = by_sentence(states.view(len(x), 3, heads, -1), real)
    return attention.output(joined(attended_each(parts, real, attention.scale, hides_itself)))


def of_positions(
    attention: PositionalAttention, x: Tensor, positions: Tensor, real: RealStates, hides_itself: bool
) -> Tensor:
    """Attention by the positions' vectors (P, D) to the states: (P, D) -> (P, D)."""
    heads = attention.heads
    queries_keys, values = attention.inputs(positions), attention.values(x)
    queries_keys, values = queries_keys.view(len(x), 2, heads, -1), values.view(len(x), 1, heads, -1)
    parts = by_sentence(torch.cat([queries_keys, values], 1), real)
    return attention.output(joined(attended_each(parts, real, attention.scale, hides_itself)))


def by_sentence(states: Tensor, real: RealStates) -> Sequence[Tensor]:
    """Queries, keys and values (P, 3, H, D/H) of packed states: (3, sentences, H, n, D/H) of each part."""
    count, length = (len(real.lengths), real.width) if real.slots is None else (1, len(states))
    states = states.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)
    return [states] if real.slots is None else states.split([n for n in real.lengths if n], 3)


def attended_each(parts: Sequence, real: RealStates, scale: float, hides_itself: bool) -> List[Tensor]:
    """``attended`` of every part."""
    if not hides_itself:
        return [attended(*part, real.bias, scale) for part in parts]
    widths = {part[0].size(2) for part in parts}
    biases = {width: bias_of(~torch.eye(width, dtype=torch.bool)) if width > 1 else None for width in widths}
    return [attended(*part, biases[part[0].size(2)], scale) for part in parts]


def of_picked(states: Tensor, real: RealStates, picked: Picked) -> List[Tuple[Tensor, ...]]:
    """Queries of the picked states, keys and values of all, (sentences, H, n, D/H) each, from (P, 3, H, D/H)."""
    queries, others = states[:, 0].index_select(0, picked.rows), states[:, 1:]
    if picked.real.slots is None:
        parts = [(queries.unflatten(0, (-1, picked.real.width)), others.unflatten(0, (-1, real.width)))]
    else:
        each = zip(queries.split(picked.real.lengths), others.split(real.lengths))
        parts = [(q.unsqueeze(0), kv.unsqueeze(0)) for q, kv in each if len(q)]
    return [(q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4)) for q, kv in parts]


def of_sources(
    attention: Attention,
    x: Tensor,
    bias: Optional[Tensor],
    lengths: List[int],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
) -> Tensor:
    """Cross-attention: (P, D) -> (P, D).

    Args:
        bias: of attention, where all sentences are one part. lengths: queries of every part.
        keys, values: (sentences, H, S, D/H) of every part.
    """
    parts = zip(attention.inputs(x).split(lengths), keys, values)
    heads = [
        attended(q.view(k.size(0), -1, attention.heads, k.size(-1)).transpose(1, 2), k, v, bias, attention.scale)
        for q, k, v in parts
        if len(q)
    ]
    return attention.output(joined(heads))


def is_uniform(picked: Optional[Picked]) -> bool:
    """Whether every canvas has as many picked states, or all are computed."""
    return picked is None or picked.real.slots is None


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(n, D) each -> (P, D)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def through_layer(
    layer: Layer,
    x: Tensor,
    real: RealStates,
    *source,
    picked: Optional[Picked] = None,
    positions: Optional[Tensor] = None,
    hides_itself: bool = False,
) -> Tensor:
    """(P, D) -> (P, D), or (Q, D) of the picked states.

    Args:
        source: what ``of_sources`` takes, in a decoder, of those that are computed.
        positions: (P, D), of a layer with positional attention. hides_itself: as in ``of_itself``.
    """
    own, positional, cross = layer.self_attention, layer.positional, layer.cross_attention
    y = of_itself(own, layer.before(x, own.norm), real, picked, hides_itself)
    x = layer.after(x if picked is None else x.index_select(0, picked.rows), y, own.norm)
    if positional is not None:
        y = of_positions(positional, layer.before(x, positional.norm), positions, real, hides_itself)
        x = layer.after(x, y, positional.norm)
    if cross is not None:
        x = layer.after(x, of_sources(cross, layer.before(x, cross.norm), *source), cross.norm)
    return layer.fed_forward(x)


class RealLayers:
    """The layers of an encoder or of a decoder.

    Args:
        parts, weights: tell whether they are still theirs.
        packing: of ``PACKING``. With 0 a sentence has the same states in every batch.
    """

    def __init__(self, layers: Sequence[Layer], parts: Parts, weights: list, packing: int):
        self.layers, self.parts, self.weights, self.packing = layers, parts, weights, packing

    def states(self, x: Tensor, padding: Optional[Tensor]) -> List[Tensor]:
        """``through_encoder``, batch-first: (B, S, D) -> as many before the first layer and after every one.

        Args:
            padding: (B, S) bool; None: there is none.
        """
        real = RealStates.of(x, padding, self.packing)
        states, packed = [x], real.pack(x)
        for layer in self.layers:
            packed = through_layer(layer, packed, real)
            states.append(real.unpack(packed))
        return states

    def features(
        self,
        x: Tensor,
        padding: Optional[Tensor],
        memory: Memory,
        picked: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        hides_itself: bool = False,
    ) -> Tensor:
        """``through_decoder``: (R, T, D) -> (R, T or n, D).

        Args:
            padding: (R, T) bool; None: there is none.
            picked: (R, n) int64, the positions that the last layer computes; None: all.
            positions: (R, T, D), the positions' vectors, which layers with positional attention read.
            hides_itself: a position does not see itself; then nothing is picked.
        """
        packing = 0 if hides_itself else self.packing
        real, last = RealStates.of(x, padding, packing), len(self.layers) - 1
        some, within = None, None if real.slots is None else padding
        if picked is not None:
            some = Picked.of(picked, within, x.size(1), ragged=self.packing == 0)
        sentences = memory.keys[0].size(0)
        together = real.slots is None and (memory.allowed is None or self.packing > 0) and is_uniform(some)
        queries, sources, bias = real.counts(sentences, together), None, None
        if not together:
            full = memory.allowed is None
            sources = [memory.keys[0].size(2)] * sentences if full else memory.allowed.sum(-1).flatten().tolist()
        elif memory.allowed is not None:
            bias = bias_of(memory.allowed)
        packed = real.pack(x)
        positions = None if positions is None else real.pack(positions)
        for number, (layer, keys, values) in enumerate(zip(self.layers, memory.keys, memory.values)):
            now = some if number == last else None
            if now is not None:
                queries = now.real.counts(sentences, together)
            source = bias, queries, of_sentences(keys, sources), of_sentences(values, sources)
            packed = through_layer(
                layer, packed, real, *source, picked=now, positions=positions, hides_itself=hides_itself
            )
        return (real if some is None else some.real).unpack(packed)


def of_sentences(heads: Tensor, lengths: Optional[List[int]]) -> Sequence[Tensor]:
    """Keys or values (B, H, S, D/H), padded on the right: (1, H, n, D/H) of each sentence, or those of all at once."""
    if lengths is None:
        return [heads]
    return [part[:, :, :length] for part, length in zip(heads.split(1), lengths)]


def fast_form(side: nn.Module) -> Optional[RealLayers]:
    """The layers of an encoder or of a decoder; kept in its attribute ``fast`` while the weights are theirs.

    None where only the plain form is right: in other types than int8, bfloat16 and float32 (float16 where only weights
    are), on other devices, with gradients, dropout or hooks of a user's, and for layers of other models.
    """
    layers = list(side.layers.children())
    if torch.is_grad_enabled() or not layers or not all(map(ours, layers)):
        return None
    dtype = getattr(layers[0].fc1, "dtype", None) or torch.float32
    prepared = PREPARED.get(dtype)
    if prepared is None or not may_be_plain(layers, prepared):
        return None
    parts = Parts.of(layers) if side.fast is None else side.fast.parts
    if not parts.plain(prepared):
        return None
    weights = parts.weights()
    if side.fast is None or not same(weights, side.fast.weights):
        made = [make_layer(layer, products(layer, dtype)) for layer in layers]
        side.fast = RealLayers(made, parts, weights, PACKING[dtype])
    return side.fast


def ours(layer: nn.Module) -> bool:
    """Whether a layer's own class, and not one that it is made of, says that this is its form, too."""
    return vars(type(layer)).get("has_fast_form", False)


def in_bfloat16(layer: nn.Module) -> bool:
    """Whether a linear layer is prepared for bfloat16 on a CPU, and the others are cast by autocast."""
    prepared = type(layer) is PreparedLinear and layer.dtype == torch.bfloat16 and layer.weight.is_cpu
    return prepared and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def in_float32(layer: nn.Module) -> bool:
    """Whether a linear layer is prepared for states in float32 on a CPU."""
    return plain(layer) and not torch.is_autocast_enabled("cpu")


PREPARED = {torch.int8: in_int8, torch.bfloat16: in_bfloat16, torch.float16: in_float32, torch.float32: in_float32}


def products(layer: nn.Module, dtype: torch.dtype) -> Callable[..., Function]:
    """The products of a layer's linear layers: its queries, keys and values have one.

    Small models compute few rows, too: a sentence or two.
    """
    attentions = [getattr(layer, name) for name in ("self_attn", POSITIONAL[0]) if hasattr(layer, name)]
    stacks = [attention.fused for attention in attentions if type(attention.fused) is FusedLinear]

    def function(*linears: PreparedLinear) -> Function:
        if dtype in FEW_ROWS and sum(linear.weight.numel() for linear in linears) < LARGE_WEIGHT:
            return of_few_rows(*linears)
        if len(linears) == 1:
            return linears[0].product
        for stack in stacks:
            if stack.product is not None and stack.layers == list(linears):
                return stack.product
        return product(*stacked(linears), dtype)

    return function
