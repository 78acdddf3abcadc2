"""The decoder whose states are the vertices of a graph."""

from typing import Dict, NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.models.base import NarDecoder, wrap
from nar_plugins.models.contract import Canvas
from nar_plugins.models.dag.links import Links
from nar_plugins.modules.attention import pick
from nar_plugins.modules.fast.linear import in_int8
from nar_plugins.modules.layers import NarDecoderLayer
from nar_plugins.modules.memory import Memory


class Alike(NamedTuple):
    """The canvases of a batch of which each stands for those with the same tokens, as sources of one length have."""

    canvases: Tensor  # (U,) int64
    index: Tensor  # (R,) int64: which of the U each canvas is like


class DagDecoderLayer(NarDecoderLayer):
    """The first layer's self-attention sees only the canvas: it is computed once for canvases that are alike."""

    has_fast_form = True

    def attend_canvas(
        self, x: Tensor, allowed: Optional[Tensor], picked: Optional[Tensor] = None, alike: Optional[Alike] = None
    ) -> Tensor:
        """``NarDecoderLayer.attend_canvas``; with ``alike``, of which the first layer has U canvases, no ``picked``."""
        if alike is None or x.size(0) == alike.index.size(0):
            return super().attend_canvas(x, allowed, picked)
        return super().attend_canvas(x, None if allowed is None else allowed[alike.canvases])[alike.index]


class DagDecoder(NarDecoder):
    """A decoder over a canvas of masks, and the links between its vertices."""

    def __init__(self, cfg, dictionary, embed_tokens, no_encoder_attn=False, output_projection=None):
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        self.links = Links(
            self.output_embed_dim, cfg.decoder.attention_heads, cfg.max_target_positions, cfg.max_transition_length
        )

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return wrap(DagDecoderLayer(cfg, no_encoder_attn), cfg)

    def read_by_heads(self, encoder_out: Dict) -> Dict[str, Tensor]:
        """``Memory.encoded``: ``source_lengths`` (B,), which decide the canvas, and ``copies`` (B, S, D), the source's
        embeddings.
        """
        return {
            "source_lengths": encoder_out["src_lengths"][0].squeeze(1),
            "copies": encoder_out["encoder_embedding"][0],
        }

    def forward(
        self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None, copied: Optional[Tensor] = None
    ) -> Tensor:
        """``NarDecoder.forward``. Without dropout, canvases of the same tokens have the same states until they attend
        to the source. (A graph, exported or of ``--compile``, has as many canvases in all layers.)

        Args:
            copied: (R, L) bool, the vertices that are embedded as the source's token at their place; None: none.
        """
        if copied is not None:
            words = torch.where(copied.unsqueeze(2), stretched(canvas, memory), self.embed_words(canvas.inputs))
            return self.through_layers(self.embed(canvas, words), memory, canvas.padding, picked)
        alike, in_graph = None, self.compiled is not None or torch.compiler.is_exporting()
        # in int8 a sentence has the same states in every batch, whatever canvases are alike
        if not self.training and picked is None and not in_graph and not in_int8(self.layers[0].fc1):
            alike = alike_canvases(canvas.inputs)
        if alike is None:
            return super().forward(canvas, memory, picked)
        x = self.embed(canvas.select(alike.canvases))
        return self.through_layers(x, memory, canvas.padding, alike=alike)


def stretched(canvas: Canvas, memory: Memory) -> Tensor:
    """The embeddings of the source's tokens, each as often as any other, over the canvas: (R, L, D)."""
    copies, sources = memory.encoded["copies"], memory.encoded["source_lengths"].unsqueeze(1)
    places = torch.arange(canvas.inputs.size(1), device=sources.device)
    return pick(copies, torch.minimum(places * sources // canvas.lengths().unsqueeze(1), sources - 1))


def alike_canvases(tokens: Tensor) -> Optional[Alike]:
    """Those of tokens (R, L) int64; None: no two are alike."""
    if tokens.size(0) == 1:
        return None
    distinct, index = tokens.unique(dim=0, return_inverse=True)
    if len(distinct) == len(tokens):
        return None
    rows = torch.arange(len(tokens), device=tokens.device)
    return Alike(rows.new_zeros(len(distinct)).scatter_(0, index, rows), index)
