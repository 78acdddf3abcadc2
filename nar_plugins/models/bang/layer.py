"""BANG's decoder layer: n-stream self-attention, cross-attention, feed-forward; a norm after each."""

from typing import Optional

from torch import Tensor

from nar_plugins.models.bang.attention import NStreamAttention
from nar_plugins.models.bang.cache import DecodingStep
from nar_plugins.models.bang.stream_layout import StreamLayout
from nar_plugins.modules.attention import attend_packed
from nar_plugins.modules.block_decoder import BlockCache
from nar_plugins.modules.layers import NarDecoderLayer


class BangDecoderLayer(NarDecoderLayer):
    """fairseq's decoder layer with the release's self-attention under the release's name."""

    def __init__(self, cfg, no_encoder_attn=False):
        super().__init__(cfg, no_encoder_attn)
        self.ngram_self_attn = self.self_attn
        del self.self_attn

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return NStreamAttention(embed_dim, cfg.decoder.attention_heads, cfg.attention_dropout)

    def forward(
        self,
        x: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        memory_allowed: Optional[Tensor],
        layout: StreamLayout,
        masks_only: bool = False,
    ) -> Tensor:
        """One layer over packed states.

        Args:
            x: (P, D), packed as in ``layout``.
            memory_keys, memory_values: (B, H, S, D/H), ``encoder_attn.keys_values`` of the encoder's states.
            memory_allowed: (B, 1, 1, S) bool, or None where the source has no padding.
            masks_only: leave out the main tokens' results (the last layer).

        Returns:
            (P or C, D).
        """
        y = self.ngram_self_attn(x, layout, masks_only)
        left_out = len(x) - len(y)
        x = self.add(x[left_out:], y, self.self_attn_layer_norm)
        slots = layout.memory_slots[left_out:]
        y = attend_packed(self.encoder_attn, x, memory_keys, memory_values, memory_allowed, slots, layout.memory_width)
        return self.feed_forward(self.add(x, y, self.encoder_attn_layer_norm))

    def decode_step(
        self, x: Tensor, step: DecodingStep, cache: BlockCache, number: int, masks_only: bool = False
    ) -> Tensor:
        """One layer of a decoding step: x (b, m + r*n, D) -> (b, m + r*n or r*n, D)."""
        y = self.ngram_self_attn.decode_step(x, step, cache, number, masks_only)
        x = self.add(x[:, x.size(1) - y.size(1) :], y, self.self_attn_layer_norm)
        memory = cache.memory
        return self.feed_forward(self.attend_memory(x, memory.keys[number], memory.values[number], memory.allowed))
