"""NAT's encoder with its fertility head, and its decoder over a canvas of source copies (Gu et al. 2018, section 3)."""

from typing import Dict, List, Optional

import torch
from torch import Tensor

from nar_plugins.models.base import NarDecoder, NarEncoder, wrap
from nar_plugins.models.contract import Canvas, Memory
from nar_plugins.models.nat.fertility_head import FertilityHead
from nar_plugins.models.nat.positional_attention import PositionalDecoderLayer, not_itself
from nar_plugins.modules.attention import pick
from nar_plugins.modules.fast.table import canvas_positions
from nar_plugins.modules.layers import NarDecoderLayer


class NatEncoder(NarEncoder):
    """The encoder, with a fertility head where fertilities shape the canvas."""

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.fertility_head = FertilityHead(cfg.encoder.embed_dim) if cfg.source_copy == "fertility" else None

    def forward(self, src_tokens: Tensor, src_lengths=None, return_all_hiddens=True, token_embeddings=None) -> Dict:
        """``NarEncoder``'s output, always with the states of all layers, and ``copies`` (B, S, D).

        The copies fill the canvas: the embedded source with its positions, before any dropout or norm.
        """
        out = super().forward(src_tokens, src_lengths, True, token_embeddings)
        states = out["encoder_states"]
        if self.layer_norm is not None and self.cfg.layerwise_attention:  # fairseq norms the top only
            out["encoder_states"] = [states[0], *(self.layer_norm(state) for state in states[1:])]
        drops = self.training or self.dropout_module.apply_during_inference
        if self.layernorm_embedding is None and not drops:  # then the copies are what the first layer reads
            return {**out, "copies": [states[0].transpose(0, 1)]}
        positions = 0 if self.embed_positions is None else self.embed_positions(src_tokens)
        copies = out["encoder_embedding"][0] + positions
        return {**out, "copies": [copies.masked_fill(src_tokens.eq(self.padding_idx).unsqueeze(-1), 0)]}


class NatDecoder(NarDecoder):
    """A decoder over a canvas of copied source embeddings."""

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        kind = PositionalDecoderLayer if cfg.positional_attention else NarDecoderLayer
        return wrap(kind(cfg, no_encoder_attn), cfg)

    @property
    def one_source(self) -> bool:
        """As ``NarDecoder``'s."""
        return not self.cfg.layerwise_attention

    def attended_states(self, encoder_out: Dict) -> List[Tensor]:
        """With ``--layerwise-attention`` layer k attends to layer k of the encoder."""
        if self.cfg.layerwise_attention:
            return encoder_out["encoder_states"][1:]
        return super().attended_states(encoder_out)

    def hides_itself(self) -> bool:
        """As ``NarDecoder``'s: with ``--mask-diagonal``."""
        return self.cfg.mask_diagonal and type(self).allowed_positions is NatDecoder.allowed_positions

    def allowed_positions(self, padding: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
        """With ``--mask-diagonal`` a position may not look at itself."""
        return not_itself(padding, x) if self.cfg.mask_diagonal else super().allowed_positions(padding, x)

    def read_by_heads(self, encoder_out: Dict) -> Dict[str, Tensor]:
        """``Memory.encoded``: ``copies`` (B, S, D) for the canvas, ``top`` (B, S, D) for the fertilities,
        ``source_lengths`` (B,), and with a length head ``length_state`` (B, D).
        """
        return {
            **super().read_by_heads(encoder_out),
            "copies": encoder_out["copies"][0],
            "top": encoder_out["encoder_out"][0].transpose(0, 1),
            "source_lengths": encoder_out["src_lengths"][0].squeeze(1),
        }

    def forward(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """One pass over a canvas of embeddings: features (R, T or n, D). The target's positions are added here."""
        x, padding = canvas
        tokens = torch.full(x.shape[:2], self.padding_idx + 1, device=x.device)  # any token that is not padding
        if padding is not None:
            tokens = tokens.masked_fill(padding, self.padding_idx)
        positions = 0
        if self.embed_positions is not None:
            positions = canvas_positions(self.embed_positions, tokens, padding).to(x).expand_as(x)
        x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        extra = {"positions": positions} if self.cfg.positional_attention else {}
        features = self.through_layers(self.dropout_module(x), memory, padding, **extra)
        return features if picked is None else pick(features, picked)
