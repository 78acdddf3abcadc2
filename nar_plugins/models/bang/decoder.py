"""BANG's encoder and decoder: fairseq's, with the release's parameter names and n-stream self-attention."""

from contextlib import contextmanager
from typing import Dict, Optional

import torch
import torch.nn as nn
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import PositionalEmbedding
from torch import Tensor

from nar_plugins.models.bang.cache import plan_step
from nar_plugins.models.bang.layer import BangDecoderLayer
from nar_plugins.models.bang.stream_layout import StreamLayout, build_layout
from nar_plugins.models.base import NarEncoder, wrap
from nar_plugins.modules.attention import allowed_sources, split_heads
from nar_plugins.modules.block_decoder import BlockCache, mean_attention
from nar_plugins.modules.fast.table import position_rows
from nar_plugins.modules.memory import Memory
from nar_plugins.modules.relative_positions import bucket_table


class BangEncoder(NarEncoder):
    """fairseq's encoder; the norm of its embeddings has the release's name."""

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.emb_layer_norm = self.layernorm_embedding
        del self.layernorm_embedding

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Optional[Tensor] = None):
        """Source (B, S) int64 -> its embeddings with positions and norm, and the token embeddings; both (B, S, D)."""
        tokens = self.embed_tokens(src_tokens) if token_embedding is None else token_embedding
        return self.dropout_module(self.emb_layer_norm(tokens + self.embed_positions(src_tokens))), tokens


class BangDecoder(TransformerDecoderBase):
    """A main stream of tokens, and rows of masks that see a part of it.

    ``forward`` is an ordinary autoregressive decoder, with one mask after each token, so fairseq's own search and
    scoring work. ``mask_features`` is the training pass over any rows. ``start`` and ``decode_step`` are for decoding.

    Attributes:
        one_source: every layer attends to the same states (``modules/fast/fused.py``).
    """

    one_source = True

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.emb_layer_norm = self.layernorm_embedding
        del self.layernorm_embedding
        # one position more than tokens: a mask stands one position right of the token before it
        self.embed_positions = PositionalEmbedding(
            self.max_target_positions + 1, self.embed_dim, self.padding_idx, True
        )
        self.ngram_input_embed = nn.Embedding(1, self.embed_dim)
        self.nar_sees_bos = cfg.nar_sees_bos
        self.register_buffer("buckets", bucket_table(), persistent=False)
        self.returns_attention = False  # True within ``returning_attention``

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return wrap(BangDecoderLayer(cfg, no_encoder_attn), cfg)

    def max_positions(self) -> int:
        """The longest target."""
        return self.max_target_positions

    def memory(self, encoder_out: Dict) -> Memory:
        """Keys and values of every layer's cross-attention, from fairseq's encoder output."""
        states = [encoder_out["encoder_out"][0].transpose(0, 1)] * len(self.layers)
        return Memory.of([layer.encoder_attn for layer in self.layers], states, allowed_sources(encoder_out))

    def embed(self, contents: Tensor, positions: Tensor) -> Tensor:
        """Contents (..., D) at position ids (...) int64 -> (..., D)."""
        return self.dropout_module(self.emb_layer_norm(contents + position_rows(self.embed_positions, positions)))

    def position_ids(self, index: Tensor) -> Tensor:
        """Indices in the target (0: the start token) -> position ids, the indices in the table of positions; beyond the
        table its last.
        """
        return (index + self.padding_idx + 1).clamp(max=self.embed_positions.num_embeddings - 1)

    # -- training ----------------------------------------------------------------------------------------------------

    def layout(
        self,
        real: Tensor,
        counts: Tensor,
        with_ar: bool,
        positions: Optional[Tensor] = None,
        nar_sees_bos: Optional[bool] = None,
    ) -> StreamLayout:
        """The layout of a batch's packed states.

        Args:
            real: (B, T) bool, the main tokens that exist, padded on the right.
            counts: (B, T) int64, the masks of every row, at most ``mask_counts``.
            with_ar: also the AR mask of every row.
            positions: (B, T) int64, the position ids of the main tokens; None: pad + 1, pad + 2, ...
            nar_sees_bos: None: the model's flag.
        """
        if positions is None:
            positions = self.position_ids(torch.arange(real.size(1), device=real.device)).expand_as(real)
        sees_bos = self.nar_sees_bos if nar_sees_bos is None else nar_sees_bos
        return build_layout(real, positions, counts, with_ar, self.buckets, sees_bos)

    def mask_features(self, tokens: Tensor, memory: Memory, layout: StreamLayout) -> Tensor:
        """The training pass: features (C, D) of the layout's masks, for ``output_layer``.

        Args:
            tokens: (B, T) int64, the main stream: the start token, then the target without its last token.
        """
        main = self.embed_tokens(tokens[layout.main])
        masks = self.ngram_input_embed.weight.to(main.dtype).expand(layout.masks.sentence.numel(), -1)
        x = self.embed(torch.cat([main, masks]), layout.positions)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, memory.keys[i], memory.values[i], memory.allowed, layout, masks_only=i == last)
        return x

    # -- fairseq's decoder -------------------------------------------------------------------------------------------

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict] = None,
        incremental_state: Optional[Dict] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ):
        """Features (B, T, D) of the mask after each token (B, T); with an ``incremental_state`` of the new tokens only.

        Outside training also the last layer's cross-attention (B, T, S), averaged over heads. With a state: of the new
        tokens, and only within ``returning_attention``.

        Raises:
            ValueError: for an argument of fairseq's that this decoder does not serve.
        """
        if full_context_alignment or alignment_layer is not None or alignment_heads is not None:
            raise ValueError("bang has no full-context alignment, and none of a chosen layer or head: leave it out")
        if incremental_state is not None:
            x, attention = self.incremental_step(prev_output_tokens, encoder_out, incremental_state)
        else:
            x, attention = self.all_steps(prev_output_tokens, encoder_out)
        return x, {"attn": [attention], "inner_states": None}

    @contextmanager
    def returning_attention(self):
        """Within it decoding with an incremental state also returns attention. fairseq has no argument for that."""
        before, self.returns_attention = self.returns_attention, True
        try:
            yield
        finally:
            self.returns_attention = before

    @contextmanager
    def record_queries(self, wanted: bool = True):
        """Within it every pass appends the last layer's cross-attention queries (..., D) to the yielded list."""
        recorded = []
        projection = self.layers[-1].encoder_attn.q_proj
        handle = projection.register_forward_hook(lambda module, inputs, out: recorded.append(out)) if wanted else None
        try:
            yield recorded
        finally:
            if handle is not None:
                handle.remove()

    def attention(self, queries: Tensor, memory: Memory) -> Tensor:
        """The last layer's cross-attention weights of recorded queries (B, m, D), averaged over heads: (B, m, S)."""
        attention = self.layers[-1].encoder_attn
        return mean_attention(attention, split_heads(attention, queries), memory.keys[-1], memory.allowed)

    def extract_features_scriptable(self, *args, **kwargs):
        """``extract_features``."""
        return self.extract_features(*args, **kwargs)

    def all_steps(self, tokens: Tensor, encoder_out: Dict):
        """The mask after each of the tokens (B, T): features (B, T, D) and attention (B, T, S)."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        layout = self.layout(everywhere, everywhere.long(), with_ar=True, nar_sees_bos=True)
        memory = self.memory(encoder_out)
        with self.record_queries(not self.training) as recorded:
            x = self.mask_features(tokens, memory, layout).view(*tokens.shape, -1)
        return x, self.attention(recorded[0].view(*tokens.shape, -1), memory) if recorded else None

    def incremental_step(self, tokens: Tensor, encoder_out: Dict, incremental_state: Dict) -> tuple:
        """The mask after each of the tokens (B, T) that are not in the state yet: features (B, new, D), and attention
        (B, new, S) or None.
        """
        state = self.get_incremental_state(incremental_state, "main")
        if state is None:
            state = {"cache": self.start(encoder_out), "fed": 0}
        fed, length = state["fed"], tokens.size(1)
        row_starts = torch.arange(length - fed, device=tokens.device).expand(tokens.size(0), -1)
        lengths = tokens.new_full((tokens.size(0),), fed)
        with self.record_queries(self.returns_attention) as recorded:
            x = self.decode_step(tokens[:, fed:], lengths, state["cache"], 1, row_starts, longest=fed)
        self.set_incremental_state(incremental_state, "main", {"cache": state["cache"], "fed": length})
        return x.squeeze(2), self.attention(recorded[0], state["cache"].memory) if recorded else None

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        """Reorder the hypotheses of a beam. While their number stays the same, so do their sentences and the memory, as
        in fairseq's attention.
        """
        state = self.get_incremental_state(incremental_state, "main")
        if state is not None:
            state["cache"].select(new_order, memory=new_order.numel() != state["cache"].sentences)

    # -- decoding ----------------------------------------------------------------------------------------------------

    def start(self, encoder_out: Dict) -> BlockCache:
        """The empty cache of a batch, from fairseq's encoder output; ``cache.select`` keeps unfinished sentences."""
        return BlockCache(self.memory(encoder_out))

    def decode_step(
        self,
        tokens: Tensor,
        lengths: Tensor,
        cache: BlockCache,
        masks: int,
        row_starts: Tensor,
        longest: Optional[int] = None,
        sees_bos: Optional[bool] = None,
    ) -> Tensor:
        """One decoder pass over new main tokens and rows of masks after some of them.

        A mask sees the main tokens up to its row's start, that token included, and the masks before it in its row. The
        main tokens are written to the cache; ``lengths`` of the next call decides how many of them stay. Masks are not
        cached.

        Args:
            tokens: (b, m) int64, m >= 1; the first call's begin with the start token. Padding after a sentence's tokens
                is harmless as long as the next ``lengths`` does not count it.
            lengths: (b,) int64, main tokens of each sentence that are in the cache and stay.
            masks: n, the number of masks in each row.
            row_starts: (b, r) int64, the index inside ``tokens`` after which each of the r rows stands. Mask j of a row
                predicts the token j + 1 positions after it. r = 1 for a draft; every index of ``tokens`` to verify them
                all.
            longest: the largest of ``lengths`` where the host knows it; None: read from the device.
            sees_bos: whether a row directly after the start token sees it. None: always where there is one mask (the
                autoregressive mode), else as in ``--nar-sees-bos``.

        Returns:
            features (b, r, n, D), for ``output_layer``. Masks beyond the table of positions get its last position.
        """
        if longest is None:
            longest = int(lengths.max())
        if sees_bos is None:
            sees_bos = self.nar_sees_bos or masks == 1
        step = plan_step(self.buckets, lengths, tokens.size(1), row_starts, masks, longest, sees_bos)
        main = self.embed_tokens(tokens)
        contents = self.ngram_input_embed.weight.to(main.dtype).expand(main.size(0), row_starts.size(1) * masks, -1)
        x = self.embed(torch.cat([main, contents], 1), self.position_ids(step.indices))
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer.decode_step(x, step, cache, i, masks_only=i == last)
        return x.unflatten(1, (row_starts.size(1), masks))
