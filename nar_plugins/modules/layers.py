"""fairseq's Transformer layers with this package's attention; the decoder layer has no causal mask."""

from typing import List, Optional, Sequence

import torch
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor

from nar_plugins.modules.activation import activation, in_place
from nar_plugins.modules.attention import Attention, allowed_keys, pick
from nar_plugins.modules.memory import Memory


class Sublayers:
    """What encoder and decoder layers have in common."""

    def feed_forward(self, x: Tensor) -> Tensor:
        inputs = self.final_layer_norm(x) if self.normalize_before else x
        y = self.fc2(self.activation_dropout_module(self.activated(self.fc1(inputs))))
        return self.add(x, y, self.final_layer_norm)

    def activated(self, hidden: Tensor) -> Tensor:
        """The activation function of the outputs of ``fc1``."""
        if torch.is_grad_enabled() or self.fc1._forward_hooks:  # a hook of a user's may keep them
            return self.activation_fn(hidden)
        return in_place(self.activation_fn)(hidden)

    def add(self, x: Tensor, y: Tensor, norm) -> Tensor:
        """Dropout on the sublayer's output, residual connection, and the norm with post-norm."""
        x = self.residual_connection(self.dropout_module(y), x)
        return x if self.normalize_before else norm(x)


class NarEncoderLayer(Sublayers, TransformerEncoderLayerBase):
    """fairseq's encoder layer (its parameters, names and signature) around ``Attention``, computed batch-first."""

    has_fast_form = True

    def __init__(self, cfg):
        super().__init__(cfg)
        self.activation_fn = activation(cfg)

    def build_self_attention(self, embed_dim, cfg):
        return Attention(
            embed_dim,
            cfg.encoder.attention_heads,
            dropout=cfg.attention_dropout,
            self_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def forward(self, x: Tensor, encoder_padding_mask: Optional[Tensor], attn_mask: Optional[Tensor] = None) -> Tensor:
        """(S, B, D) -> (S, B, D), a view of batch-first memory, as every layer computes it.

        Args:
            encoder_padding_mask: (B, S) bool, True = padding; None: there is none.

        Raises:
            ValueError: for fairseq's ``attn_mask``.
        """
        if attn_mask is not None:
            raise ValueError("this encoder layer takes no attn_mask")
        x = x.transpose(0, 1)
        inputs = self.self_attn_layer_norm(x) if self.normalize_before else x
        y = self.self_attn.attend(*self.self_attn.self_projections(inputs), allowed_keys(encoder_padding_mask))
        return self.feed_forward(self.add(x, y, self.self_attn_layer_norm)).transpose(0, 1)


class NarDecoderLayer(Sublayers, TransformerDecoderLayerBase):
    """fairseq's decoder layer (its parameters and names), batch-first and without a causal mask.

    Attributes:
        has_fast_form: ``modules/fast/real_layers.py`` computes what this very class does; a subclass says it itself.
    """

    has_fast_form = True

    def __init__(self, cfg, no_encoder_attn=False):
        super().__init__(cfg, no_encoder_attn)
        self.activation_fn = activation(cfg)

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return self.build_attention(embed_dim, cfg, self_attention=True)

    def build_encoder_attention(self, embed_dim, cfg):
        return self.build_attention(
            embed_dim, cfg, kdim=cfg.encoder.embed_dim, vdim=cfg.encoder.embed_dim, encoder_decoder_attention=True
        )

    def build_attention(self, embed_dim, cfg, **kind):
        return Attention(
            embed_dim,
            cfg.decoder.attention_heads,
            dropout=cfg.attention_dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
            **kind,
        )

    def forward(
        self,
        x: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        memory_allowed: Optional[Tensor] = None,
        canvas_allowed: Optional[Tensor] = None,
        picked: Optional[Tensor] = None,
        **extra,
    ) -> Tensor:
        """One layer over every canvas.

        Args:
            x: (B*N, T, D), the N canvases of a sentence next to each other.
            memory_keys, memory_values: (B, H, S, D/H), ``encoder_attn.keys_values`` of the encoder's states, once per
                sentence: the queries of its N canvases are concatenated.
            memory_allowed: (B, 1, 1, S) bool, or None where the source has no padding.
            canvas_allowed: (B*N, 1, 1, T) bool, or None where the canvas has no padding.
            picked: (B*N, n) int64, the positions that are computed (in the last layer), or None for all.
            extra: further arguments of a subclass's ``attend_canvas``.

        Returns:
            (B*N, T or n, D).
        """
        x = self.attend_canvas(x, canvas_allowed, picked, **extra)
        return self.feed_forward(self.attend_memory(x, memory_keys, memory_values, memory_allowed))

    def attend_canvas(self, x: Tensor, allowed: Optional[Tensor], picked: Optional[Tensor] = None) -> Tensor:
        """Self-attention, of all positions or the picked ones."""
        inputs = self.self_attn_layer_norm(x) if self.normalize_before else x
        y = self.self_attn.attend(*self.self_attn.self_projections(inputs, picked), allowed)
        return self.add(x if picked is None else pick(x, picked), y, self.self_attn_layer_norm)

    def attend_memory(self, x: Tensor, keys: Tensor, values: Tensor, allowed: Optional[Tensor]) -> Tensor:
        """Cross-attention; the queries of a sentence's canvases are concatenated."""
        inputs = self.encoder_attn_layer_norm(x) if self.normalize_before else x
        queries = inputs.reshape(keys.size(0), -1, inputs.size(-1))
        y = self.encoder_attn.attend(self.encoder_attn.queries(queries), keys, values, allowed)
        return self.add(x, y.view_as(x), self.encoder_attn_layer_norm)


def through_encoder(layers: Sequence[Optional[NarEncoderLayer]], x: Tensor, padding: Optional[Tensor]) -> List[Tensor]:
    """The states (S, B, D) before the first layer and after every one; None in place of a layer repeats its input.

    Args:
        padding: (B, S) bool, True = padding; None: there is none.
    """
    states = [x]
    for layer in layers:
        x = x if layer is None else layer(x, encoder_padding_mask=padding)
        states.append(x)
    return states


def through_decoder(
    layers: Sequence[NarDecoderLayer],
    x: Tensor,
    memory: Memory,
    allowed: Optional[Tensor],
    picked: Optional[Tensor],
    **extra,
) -> Tensor:
    """The last layer's output (R, T or n, D) for an embedded canvas (R, T, D).

    Args:
        allowed: the visible keys of the canvas. picked: (R, n) int64, what the last layer computes; None: all.
        extra: further arguments of a subclass's layers.
    """
    last = len(layers) - 1
    for i, layer in enumerate(layers):
        x = layer(
            x,
            memory.keys[i],
            memory.values[i],
            memory_allowed=memory.allowed,
            canvas_allowed=allowed,
            picked=picked if i == last else None,
            **extra,
        )
    return x
