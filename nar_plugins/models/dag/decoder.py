"""The decoder whose states are the vertices of a graph."""

from typing import Dict

from torch import Tensor

from nar_plugins.models.base import NarDecoder
from nar_plugins.models.dag.links import Links


class DagDecoder(NarDecoder):
    """A decoder over a canvas of masks, and the links between its vertices."""

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False, output_projection=None):
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        self.links = Links(
            self.output_embed_dim, cfg.decoder.attention_heads, cfg.max_target_positions, cfg.max_transition_length
        )

    def read_by_heads(self, encoder_out: Dict) -> Dict[str, Tensor]:
        """``Memory.encoded``: ``source_lengths`` (B,), which decide the canvas."""
        return {"source_lengths": encoder_out["src_lengths"][0].squeeze(1)}
