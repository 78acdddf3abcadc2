"""Layers of different sizes: fewer attention heads and feed-forward units than the model's flags say.

``nar-prune`` writes what each layer keeps into the model's arguments in the checkpoint, as ``kept_sizes``:

    {"encoder": [{"self_attn": 3, "ffn": 200}, ...], "decoder": [{"self_attn": 2, "encoder_attn": 4, "ffn": 96}, ...]}

and with ``"rank": 64`` the table of words is factorised (``factorised.py``).

The flags keep the sizes of before, from which a head's width follows. A model is built from its flags, and then
``shrink`` is called. The weights of removed units do not exist, so that every form of a layer (``modules/fast``, int8,
ONNX) computes less without knowing of it.
"""

from typing import Dict, List, NamedTuple, Optional

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.factorised import FactorisedEmbedding, factorise, is_tied

SIDES = ("encoder", "decoder")
FEED_FORWARD = "ffn"
RANK = "rank"
KEPT = "kept_sizes"  # the model's argument


class Part(NamedTuple):
    """A part of a layer whose units can be removed one by one: attention of its heads, a feed-forward of its units."""

    layer: nn.Module
    name: str  # of the attention in its layer, or ``FEED_FORWARD``
    units: int
    output: nn.Linear  # it reads the units side by side

    @property
    def width(self) -> int:
        """The inputs of ``output`` that are one unit's."""
        return self.output.weight.size(1) // self.units

    def keep(self, units: Tensor) -> None:
        """Remove all units but these, (n,) int64."""
        if self.name == FEED_FORWARD:
            keep_rows(self.layer.fc1, units)
            keep_columns(self.layer.fc2, units)
        else:
            attention = getattr(self.layer, self.name)
            getattr(attention, "keep_heads", lambda heads: keep_heads(attention, heads))(units)


def layers_of(side: nn.Module) -> List[nn.Module]:
    """The layers of an encoder or decoder; iterating over them under LayerDrop would leave some out."""
    return list(side.layers.children())


def parts_of(layer: nn.Module) -> Dict[str, Part]:
    """The parts of one of fairseq's layers or of this package's, by name."""
    attentions = {name: child for name, child in layer.named_children() if hasattr(child, "num_heads")}
    parts = {name: Part(layer, name, each.num_heads, each.out_proj) for name, each in attentions.items()}
    parts[FEED_FORWARD] = Part(layer, FEED_FORWARD, layer.fc2.weight.size(1), layer.fc2)
    return parts


def sizes_of(model: nn.Module) -> Dict[str, object]:
    """The sizes of a model, in the form of ``kept_sizes``."""
    sizes = {
        side: [
            {name: part.units for name, part in parts_of(layer).items()} for layer in layers_of(getattr(model, side))
        ]
        for side in SIDES
    }
    table = model.encoder.embed_tokens
    return {**sizes, RANK: table.embed_tokens.embedding_dim} if isinstance(table, FactorisedEmbedding) else sizes


def kept_layers(args, side: str) -> Optional[List[Dict[str, int]]]:
    """What the layers of a side keep; None: they are as the flags say.

    Args:
        args: the model's arguments; with fairseq's ``encoder_layers_to_keep`` only those layers are built.
    """
    kept = getattr(args, KEPT, None)
    if not kept:
        return None
    layers = list(kept[side])
    chosen = getattr(args, f"{side}_layers_to_keep", None)
    return [layers[number] for number in sorted(map(int, chosen.split(",")))] if chosen else layers


def shrink(model: nn.Module, args) -> None:
    """Give a model that was built from its flags the sizes of its ``kept_sizes``.

    Which units remain does not matter: the weights are initial ones, or a checkpoint's follow.

    Args:
        args: the model's arguments.

    Raises:
        ValueError: the model has other layers.
    """
    for side in SIDES:
        kept = kept_layers(args, side)
        if kept is None:
            continue
        layers = layers_of(getattr(model, side))
        if len(kept) != len(layers):
            raise ValueError(
                f"the pruned model has {len(kept)} {side} layers and --{side}-layers is {len(layers)}: leave it out"
            )
        for number, (layer, sizes) in enumerate(zip(layers, kept)):
            parts = parts_of(layer)
            for name, units in sizes.items():
                available = parts[name].units if name in parts else 0
                if not 0 < units <= available:
                    raise ValueError(
                        f"the pruned model keeps {units} units of {side}.layers.{number}.{name}, which has {available} "
                        "here: give the --arch and sizes of the model that was pruned"
                    )
                if units < available:
                    parts[name].keep(torch.arange(units))
    rank = (getattr(args, KEPT, None) or {}).get(RANK)
    if rank is not None:
        if not is_tied(model):
            raise ValueError("the pruned model has one factorised table of words: give --share-all-embeddings")
        factorise(model, rank)


def keep_heads(attention: nn.Module, heads: Tensor) -> None:
    """Remove all heads but these, (n,) int64, of fairseq's ``MultiheadAttention``."""
    rows = inputs_of(heads, attention.head_dim)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        keep_rows(projection, rows)
    keep_columns(attention.out_proj, rows)
    attention.num_heads, attention.embed_dim = len(heads), len(rows)  # fairseq's forward shapes its heads by the second
    attention.skip_embed_dim_check = True  # and PyTorch's function, which it calls otherwise, takes square weights only


def inputs_of(units: Tensor, width: int) -> Tensor:
    """The indices (n * width,) of units (n,) that lie side by side."""
    return (units.unsqueeze(1) * width + torch.arange(width, device=units.device)).flatten()


def keep_rows(layer: nn.Linear, rows: Tensor) -> None:
    """Remove all outputs of a linear layer but these, (n,) int64."""
    layer.weight = selected(layer.weight, 0, rows)
    if layer.bias is not None:
        layer.bias = selected(layer.bias, 0, rows)
    layer.out_features = len(rows)


def keep_columns(layer: nn.Linear, columns: Tensor) -> None:
    """Remove all inputs of a linear layer but these, (n,) int64."""
    layer.weight = selected(layer.weight, 1, columns)
    layer.in_features = len(columns)


def selected(parameter: nn.Parameter, dim: int, indices: Tensor) -> nn.Parameter:
    """A parameter with some of the entries of a dimension, in memory of its own."""
    values = parameter.detach().index_select(dim, indices.to(parameter.device))
    return nn.Parameter(values, requires_grad=parameter.requires_grad)
