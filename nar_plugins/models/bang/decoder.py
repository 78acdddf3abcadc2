"""BANG's encoder and decoder: fairseq's, with the release's parameter names and a decoder of rows of masks."""

from contextlib import contextmanager
from typing import Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import PositionalEmbedding
from torch import Tensor

from nar_plugins.models.bang.cache import plan_block
from nar_plugins.models.bang.layer import BangDecoderLayer
from nar_plugins.models.bang.stream_layout import Layout, lay_out
from nar_plugins.models.base import NarEncoder, wrap
from nar_plugins.modules.attention import allowed_sources, split_heads
from nar_plugins.modules.block_decoder import BlockCache, mean_attention
from nar_plugins.modules.memory import Memory
from nar_plugins.modules.relative_positions import bucket_table


class BangEncoder(NarEncoder):
    """fairseq's encoder; the norm of its embeddings has the release's name."""

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.emb_layer_norm = self.layernorm_embedding
        del self.layernorm_embedding

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Optional[Tensor] = None):
        """Source (B, S) int64 -> its embeddings with positions, normed, and the tokens' alone; both (B, S, D)."""
        tokens = self.embed_tokens(src_tokens) if token_embedding is None else token_embedding
        return self.dropout_module(self.emb_layer_norm(tokens + self.embed_positions(src_tokens))), tokens


class BangDecoder(TransformerDecoderBase):
    """A main stream of tokens, and rows of masks that see a part of it.

    ``forward`` is an ordinary autoregressive decoder, one mask after each token, so fairseq's own search and scoring
    work; ``cells`` is the training pass over any rows; ``start`` and ``block`` are what decoding asks.
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.emb_layer_norm = self.layernorm_embedding
        del self.layernorm_embedding
        # one position more than tokens: a mask stands one further right than the token before it
        self.embed_positions = PositionalEmbedding(
            self.max_target_positions + 1, self.embed_dim, self.padding_idx, True
        )
        self.ngram_input_embed = nn.Embedding(1, self.embed_dim)
        self.nar_sees_bos = cfg.nar_sees_bos
        self.register_buffer("buckets", bucket_table(), persistent=False)
        self.attends = False  # within ``attending``

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
        """Contents (..., D) at rows (...) of the table of positions -> (..., D)."""
        return self.dropout_module(self.emb_layer_norm(contents + F.embedding(positions, self.embed_positions.weight)))

    def place(self, index: Tensor) -> Tensor:
        """Rows of the table of positions of what stands at ``index`` (0: the start token); beyond the table its
        last.
        """
        return (index + self.padding_idx + 1).clamp(max=self.embed_positions.num_embeddings - 1)

    # -- training
    # --------------------------------------------------------------------------------------------------------

    def layout(
        self,
        real: Tensor,
        sizes: Tensor,
        lone: bool,
        positions: Optional[Tensor] = None,
        nar_sees_bos: Optional[bool] = None,
    ) -> Layout:
        """The packed states of a batch.

        Args:
            real: (B, T) bool, the main tokens that exist, padded on the right.
            sizes: (B, T) int64, the cells of every row, at most ``row_sizes``.
            lone: also the first cell of every row.
            positions: (B, T) int64, the main tokens' rows of the table of positions; None: pad + 1, pad + 2, ...
            nar_sees_bos: None: the model's flag.
        """
        if positions is None:
            positions = self.place(torch.arange(real.size(1), device=real.device)).expand_as(real)
        sees = self.nar_sees_bos if nar_sees_bos is None else nar_sees_bos
        return lay_out(real, positions, sizes, lone, self.buckets, sees)

    def cells(self, tokens: Tensor, memory: Memory, layout: Layout) -> Tensor:
        """The training pass: features (C, D) of the layout's cells, to be projected by ``output_layer``.

        Args:
            tokens: (B, T) int64, the main stream: the start token, then the target without its last token.
        """
        main = self.embed_tokens(tokens[layout.main])
        masks = self.ngram_input_embed.weight.to(main.dtype).expand(layout.cells.sentence.numel(), -1)
        x = self.embed(torch.cat([main, masks]), layout.positions)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, memory.keys[i], memory.values[i], memory.allowed, layout, cells_only=i == last)
        return x

    # -- fairseq's decoder
    # -----------------------------------------------------------------------------------------------

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict] = None,
        incremental_state: Optional[Dict] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ):
        """Features (B, T, D) of the mask after each token (B, T), the new ones only where there is an
        ``incremental_state``.

        Outside training also the last layer's cross-attention, (B, T, S), the mean over heads; with a state, whose
        owner asks for it seldom, of the new ones and within ``attending`` only.

        Raises:
            ValueError: for an argument of fairseq's that this decoder does not serve.
        """
        if full_context_alignment or alignment_layer is not None or alignment_heads is not None:
            raise ValueError("bang has no full-context alignment, and none of a chosen layer or head: leave it out")
        if incremental_state is not None:
            x, attention = self.step(prev_output_tokens, encoder_out, incremental_state)
        else:
            x, attention = self.every_step(prev_output_tokens, encoder_out)
        return x, {"attn": [attention], "inner_states": None}

    @contextmanager
    def attending(self):
        """Within it decoding with an incremental state returns attention, too: fairseq has no argument that asks for
        it.
        """
        before, self.attends = self.attends, True
        try:
            yield
        finally:
            self.attends = before

    @contextmanager
    def queries(self, wanted: bool = True):
        """Within it every pass appends the last layer's queries of the encoder, (..., D), to the list that is
        yielded.
        """
        kept = []
        projection = self.layers[-1].encoder_attn.q_proj
        handle = projection.register_forward_hook(lambda module, inputs, out: kept.append(out)) if wanted else None
        try:
            yield kept
        finally:
            if handle is not None:
                handle.remove()

    def attention(self, queries: Tensor, memory: Memory) -> Tensor:
        """The last layer's attention of such queries (B, m, D) to the source, the mean over heads: (B, m, S)."""
        attention = self.layers[-1].encoder_attn
        return mean_attention(attention, split_heads(attention, queries), memory.keys[-1], memory.allowed)

    def extract_features_scriptable(self, *args, **kwargs):
        """``extract_features``."""
        return self.extract_features(*args, **kwargs)

    def every_step(self, tokens: Tensor, encoder_out: Dict):
        """The mask after each of the tokens (B, T): features (B, T, D) and attention (B, T, S)."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        layout = self.layout(everywhere, everywhere.long(), lone=True, nar_sees_bos=True)
        memory = self.memory(encoder_out)
        with self.queries(not self.training) as asked:
            x = self.cells(tokens, memory, layout).view(*tokens.shape, -1)
        return x, self.attention(asked[0].view(*tokens.shape, -1), memory) if asked else None

    def step(self, tokens: Tensor, encoder_out: Dict, incremental_state: Dict) -> tuple:
        """The tokens (B, T) not yet in the state, with a mask after each: features (B, new, D), attention (B, new, S)
        or None.
        """
        state = self.get_incremental_state(incremental_state, "main")
        if state is None:
            state = {"cache": self.start(encoder_out), "fed": 0}
        fed, length = state["fed"], tokens.size(1)
        rows = torch.arange(length - fed, device=tokens.device).expand(tokens.size(0), -1)
        lengths = tokens.new_full((tokens.size(0),), fed)
        with self.queries(self.attends) as asked:
            x = self.block(tokens[:, fed:], lengths, state["cache"], 1, rows, longest=fed)
        self.set_incremental_state(incremental_state, "main", {"cache": state["cache"], "fed": length})
        return x.squeeze(2), self.attention(asked[0], state["cache"].memory) if asked else None

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        """A beam's hypotheses change places; while their number stays, so do their sentences, as in fairseq's
        attention.
        """
        state = self.get_incremental_state(incremental_state, "main")
        if state is not None:
            state["cache"].select(new_order, memory=new_order.numel() != state["cache"].sentences)

    # -- decoding
    # --------------------------------------------------------------------------------------------------------

    def start(self, encoder_out: Dict) -> BlockCache:
        """The empty cache of a batch, from fairseq's encoder output; ``cache.select(rows)`` drops finished rows."""
        return BlockCache(self.memory(encoder_out))

    def block(
        self,
        tokens: Tensor,
        lengths: Tensor,
        cache: BlockCache,
        masks: int,
        rows: Tensor,
        longest: Optional[int] = None,
        sees_start: Optional[bool] = None,
    ) -> Tensor:
        """One decoding pass: feed new main tokens, and ask rows of masks after some of them.

        A mask sees the main tokens up to ``tokens[rows]``, that token included, and the masks before it in its row. The
        main tokens join the cache, where ``lengths`` of the next call says how many of them stay; the masks do not.

        Args:
            tokens: (b, m) int64, m >= 1; the first call's begin with the start token. Whatever pads a row at the end of
                its tokens does no harm as long as ``lengths`` does not count it afterwards.
            lengths: (b,) int64, main tokens of each row that are in the cache and stay.
            masks: n, how many masks each row has.
            rows: (b, r) int64, the index inside ``tokens`` after which each of the r rows stands. Mask j of a row
                predicts the token that comes j + 1 after it. r = 1 for a draft; every index of ``tokens`` to verify
                them all.
            longest: the largest of ``lengths`` where the host knows it; None: it is asked of the device.
            sees_start: whether a row after the start token alone sees it. None: always where there is one mask (the
                autoregressive mode), else as ``--nar-sees-bos`` says.

        Returns:
            features (b, r, n, D), for ``output_layer``. Masks beyond the table of positions get its last.
        """
        if longest is None:
            longest = int(lengths.max())
        if sees_start is None:
            sees_start = self.nar_sees_bos or masks == 1
        block = plan_block(self.buckets, lengths, tokens.size(1), rows, masks, longest, sees_start)
        main = self.embed_tokens(tokens)
        own = self.ngram_input_embed.weight.to(main.dtype).expand(main.size(0), rows.size(1) * masks, -1)
        x = self.embed(torch.cat([main, own], 1), self.place(block.places))
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer.block(x, block, cache, i, masks_only=i == last)
        return x.unflatten(1, (rows.size(1), masks))
