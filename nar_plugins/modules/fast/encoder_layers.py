"""The encoder of a stock Transformer in float32 on a CPU, with few operations: the companion of ``block_layers.py``.

For one short sentence fairseq's encoder takes as long as two decoder calls, and most of it between the products.
"""

from typing import Dict, List, Optional

import torch
import torch.nn as nn
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from torch import Tensor

from nar_plugins.modules.fast.block_layers import function, plain
from nar_plugins.modules.fast.layer import Parts, attended, bias_of, drops, make_layer, may_be_plain, same


class EncoderLayers:
    """An encoder's layers; it holds a copy of their weights.

    Args:
        parts: their modules. weights: tell whether it is still theirs.
    """

    def __init__(self, encoder, parts: Parts, weights: list):
        self.encoder, self.parts, self.weights = encoder, parts, weights
        self.layers = [make_layer(layer, function) for layer in encoder.layers]

    def __call__(self, tokens: Tensor) -> Dict[str, List[Tensor]]:
        """fairseq's encoder output for sources (B, S) int64, with what decoders read of it."""
        padding = tokens.eq(self.encoder.padding_idx)
        x, embedded = self.encoder.forward_embedding(tokens)
        bias = None
        if padding.any():
            x = x.masked_fill(padding.unsqueeze(-1), 0)
            bias = bias_of(~padding[:, None, None])
        sentences, length, dim = x.shape
        x = x.reshape(-1, dim)
        for layer in self.layers:
            own = layer.self_attention
            states = own.inputs(layer.before(x, own.norm)).view(sentences, length, 3, own.heads, -1)
            y = attended(*states.permute(2, 0, 3, 1, 4).unbind(), bias, own.scale)
            x = layer.fed_forward(layer.after(x, own.output(y), own.norm))
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
    if not may_be_plain(encoder.layers, plain):
        return None
    parts = Parts.of(encoder.layers) if before is None else before.parts
    if not parts.plain(plain) or drops(encoder.dropout_module):
        return None
    weights = parts.weights()
    return before if before is not None and same(weights, before.weights) else EncoderLayers(encoder, parts, weights)


def stock(encoder) -> bool:
    """Whether an encoder and its layers compute what fairseq's do, and no hook of a user's would see it."""
    methods = ("forward", "forward_torchscript", "forward_non_torchscript", "forward_scriptable", "forward_embedding")
    hooked = encoder._forward_pre_hooks or encoder._forward_hooks
    if not isinstance(encoder, TransformerEncoderBase) or getattr(encoder, "return_fc", False) or hooked:
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
    )
