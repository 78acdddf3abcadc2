"""The decoder layer of Gu et al. 2018, section 3.2: positional attention between self-attention and cross-attention."""

from typing import Optional

import torch
from fairseq.modules import LayerNorm
from torch import Tensor

from nar_plugins.modules.attention import project, split_heads
from nar_plugins.modules.layers import NarDecoderLayer


class PositionalDecoderLayer(NarDecoderLayer):
    """A decoder layer with positional attention, whose queries and keys are the position vectors."""

    has_fast_form = True

    def __init__(self, cfg, no_encoder_attn=False):
        super().__init__(cfg, no_encoder_attn)
        self.positional_attn = self.build_self_attention(self.embed_dim, cfg)
        self.positional_attn.fuses = ("q_proj", "k_proj")  # which read the positions
        self.positional_attn_layer_norm = LayerNorm(self.embed_dim, export=cfg.export)

    def attend_canvas(
        self, x: Tensor, allowed: Optional[Tensor], picked: Optional[Tensor] = None, *, positions: Tensor
    ) -> Tensor:
        """Self-attention, then positional attention with position vectors (B*N, T, D); ``picked`` is not supported."""
        assert picked is None, "a NAT predicts every position"
        return self.attend_positions(super().attend_canvas(x, allowed), positions, allowed)

    def attend_positions(self, x: Tensor, positions: Tensor, allowed: Optional[Tensor]) -> Tensor:
        """Positional attention with the values x (B*N, T, D)."""
        attention, norm = self.positional_attn, self.positional_attn_layer_norm
        inputs = norm(x) if self.normalize_before else x
        queries, keys = project(attention, positions, "q_proj", "k_proj")
        values = split_heads(attention, attention.v_proj(inputs))
        return self.add(x, attention.attend(queries, keys, values, allowed), norm)


def not_itself(padding: Optional[Tensor], canvas: Tensor) -> Tensor:
    """The diagonal mask: a position sees all others, (B*N, 1, T, T) or (1, 1, T, T) bool.

    A canvas of one position sees itself, because a softmax over no keys is undefined.

    Args:
        padding: (B*N, T) bool or None. canvas: (B*N, T, D), for its size and device.
    """
    width = canvas.size(1)
    others = ~torch.eye(width, dtype=torch.bool, device=canvas.device)
    if padding is None:
        return (others if width > 1 else ~others)[None, None]
    alone = padding.size(1) - padding.sum(1, keepdim=True) <= 1
    return ((others | alone.unsqueeze(2)) & ~padding.unsqueeze(1)).unsqueeze(1)
