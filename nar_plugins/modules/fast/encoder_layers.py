"""The encoder of a stock Transformer in float32 on a CPU, with few operations: the companion of ``block_layers.py``.

For one short sentence fairseq's encoder takes as long as two decoder calls, and most of it between the products.
"""

from typing import Callable, Dict, List, NamedTuple, Optional

import torch
import torch.nn as nn
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor

from nar_plugins.modules.activation import in_place
from nar_plugins.modules.fast.block_layers import attended, drops, function, norm_function, plain, plain_norm, unhooked


class Layer(NamedTuple):
    """An encoder layer's functions of states (P, D)."""

    self_input: Callable[[Tensor], Tensor]  # queries, keys and values side by side
    self_output: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]
    norms: List[Callable[[Tensor], Tensor]]
    heads: int
    scale: float
    pre_norm: bool


class EncoderLayers:
    """An encoder's layers; it holds a copy of their weights.

    Args:
        key: tells whether the weights are still the encoder's.
    """

    def __init__(self, encoder, key: list):
        self.encoder, self.key = encoder, key
        self.layers = [make_layer(layer) for layer in encoder.layers]

    def __call__(self, tokens: Tensor) -> Dict[str, List[Tensor]]:
        """fairseq's encoder output for sources (B, S) int64, with what decoders read of it."""
        padding = tokens.eq(self.encoder.padding_idx)
        x, embedded = self.encoder.forward_embedding(tokens)
        bias = None
        if padding.any():
            x = x.masked_fill(padding.unsqueeze(-1), 0)
            bias = torch.zeros(padding.shape, dtype=x.dtype).masked_fill_(padding, -torch.inf)[:, None, None]
        sentences, length, dim = x.shape
        x = x.reshape(-1, dim)
        for layer in self.layers:
            first, last = layer.norms
            states = layer.self_input(first(x) if layer.pre_norm else x).view(sentences, length, 3, layer.heads, -1)
            queries, keys, values = states.permute(2, 0, 3, 1, 4).unbind()
            x = layer.self_output(attended(queries, keys, values, bias, layer.scale)).add_(x)
            x = x if layer.pre_norm else first(x)
            x = layer.feed_forward(last(x) if layer.pre_norm else x).add_(x)
            x = x if layer.pre_norm else last(x)
        x = x.view(sentences, length, dim).transpose(0, 1)
        return {
            "encoder_out": [x if self.encoder.layer_norm is None else self.encoder.layer_norm(x)],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [embedded],
            "encoder_states": [],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [tokens.ne(self.encoder.padding_idx).sum(1, keepdim=True, dtype=torch.int32)],
        }


def encoder_layers(encoder, before: Optional[EncoderLayers] = None) -> Optional[EncoderLayers]:
    """An encoder in the fast form; None where only fairseq's own is right (see ``block_layers``).

    Args:
        before: the last result, returned again while the weights are its.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not stock(encoder):
        return None
    linears, norms, dropouts = [], [], [encoder.dropout_module]
    for layer in encoder.layers:
        attention = layer.self_attn
        linears += [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, layer.fc1, layer.fc2]
        norms += [layer.self_attn_layer_norm, layer.final_layer_norm]
        dropouts += [layer.dropout_module, layer.activation_dropout_module, attention.dropout_module]
    if not all(map(plain, linears)) or not all(map(plain_norm, norms)) or any(map(drops, dropouts)):
        return None
    key = [layer.product for layer in linears]
    key += [id(norm._parameters[name]) for norm in norms for name in ("weight", "bias")]
    return before if before is not None and before.key == key else EncoderLayers(encoder, key)


def stock(encoder) -> bool:
    """Whether an encoder and its layers compute what fairseq's do, and no hook of a user's would see it."""
    methods = ("forward", "forward_torchscript", "forward_non_torchscript", "forward_scriptable", "forward_embedding")
    if not isinstance(encoder, TransformerEncoderBase) or getattr(encoder, "return_fc", False) or not unhooked(encoder):
        return False
    if any(getattr(type(encoder), name) is not getattr(TransformerEncoderBase, name) for name in methods):
        return False
    return all(map(stock_layer, encoder.layers))


def stock_layer(layer: nn.Module) -> bool:
    """``stock`` of a layer."""
    attention = getattr(layer, "self_attn", None)
    return (
        isinstance(layer, TransformerEncoderLayerBase)
        and type(layer).forward is TransformerEncoderLayerBase.forward
        and "forward" not in vars(layer)  # --checkpoint-activations puts one there
        and type(attention) is MultiheadAttention
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not getattr(attention, "use_xformers", False)
        and unhooked(layer)
        and unhooked(attention)
    )


def make_layer(layer) -> Layer:
    """The functions of one of fairseq's encoder layers, all of whose linear layers are ``plain``."""
    attention, first, second = layer.self_attn, function(layer.fc1), function(layer.fc2)
    activation = in_place(layer.activation_fn)
    return Layer(
        function(attention.q_proj, attention.k_proj, attention.v_proj),
        function(attention.out_proj),
        lambda x: second(activation(first(x))),
        [norm_function(layer.self_attn_layer_norm), norm_function(layer.final_layer_norm)],
        attention.num_heads,
        attention.scaling,
        layer.normalize_before,
    )
