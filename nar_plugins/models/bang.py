"""BANG (Qi et al. 2021): one decoder that predicts with any number of masks between what it knows and what it says."""
from argparse import BooleanOptionalAction
from typing import Dict, NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase, TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from fairseq.modules import PositionalEmbedding
from torch import Tensor

from nar_plugins.models.nar_base import UNSUPPORTED, Memory, NarEncoder, wrap
from nar_plugins.models.presets import default, sizes, switch_on
from nar_plugins.modules.attention import allowed_keys, split_heads
from nar_plugins.modules.bang_cache import BangCache, plan_block
from nar_plugins.modules.bang_layer import BangDecoderLayer
from nar_plugins.modules.block_decoder import mean_attention
from nar_plugins.modules.cells import Cells, Layout, lay_out, row_sizes
from nar_plugins.modules.losses import chunked_word_losses
from nar_plugins.modules.relative_buckets import bucket_table

NOT_BANG = UNSUPPORTED + ("encoder_normalize_before", "decoder_normalize_before", "no_token_positional_embeddings",
                          "quant_noise_pq", "quant_noise_scalar", "encoder_embed_path", "decoder_embed_path")  # fmt: skip


class CellLosses(NamedTuple):
    """The losses (C,) of the computed cells, their negative log-likelihoods without smoothing, and which they are."""

    loss: Tensor
    nll: Tensor
    cells: Cells


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

    ``forward`` is an ordinary autoregressive decoder, one mask after each token, so fairseq's own search and scoring work;
    ``cells`` is the training pass over any rows; ``start`` and ``block`` are what decoding asks.
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.emb_layer_norm = self.layernorm_embedding
        del self.layernorm_embedding
        # one position more than tokens: a mask stands one further right than the token before it
        self.embed_positions = PositionalEmbedding(self.max_target_positions + 1, self.embed_dim, self.padding_idx, True)
        self.ngram_input_embed = nn.Embedding(1, self.embed_dim)
        self.nar_sees_bos = cfg.nar_sees_bos
        self.register_buffer("buckets", bucket_table(), persistent=False)

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return wrap(BangDecoderLayer(cfg, no_encoder_attn), cfg)

    def max_positions(self) -> int:
        """The longest target."""
        return self.max_target_positions

    def memory(self, encoder_out: Dict) -> Memory:
        """Keys and values of every layer's cross-attention, from fairseq's encoder output."""
        states, padding = encoder_out["encoder_out"][0].transpose(0, 1), encoder_out["encoder_padding_mask"]
        both = [layer.encoder_attn.keys_values(states) for layer in self.layers]
        padded = len(padding) > 0 and bool(padding[0].any())
        return Memory([k for k, _ in both], [v for _, v in both], allowed_keys(padding[0]) if padded else None)

    def embed(self, contents: Tensor, positions: Tensor) -> Tensor:
        """Contents (..., D) at rows (...) of the table of positions -> (..., D)."""
        return self.dropout_module(self.emb_layer_norm(contents + F.embedding(positions, self.embed_positions.weight)))

    def place(self, index: Tensor) -> Tensor:
        """Rows of the table of positions of what stands at ``index`` (0: the start token); beyond the table its last."""
        return (index + self.padding_idx + 1).clamp(max=self.embed_positions.num_embeddings - 1)

    # -- training --------------------------------------------------------------------------------------------------------

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

    # -- fairseq's decoder -----------------------------------------------------------------------------------------------

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict] = None,
        incremental_state: Optional[Dict] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ):
        """Features (B, T, D) of the mask after each token (B, T), the new ones only where there is an ``incremental_state``.

        Outside training and without a state also the last layer's cross-attention, (B, T, S), the mean over heads.

        Raises:
            ValueError: for an argument of fairseq's that this decoder does not serve.
        """
        if full_context_alignment or alignment_layer is not None or alignment_heads is not None:
            raise ValueError("bang has no full-context alignment, and none of a chosen layer or head: leave it out")
        if incremental_state is not None:
            x, attention = self.step(prev_output_tokens, encoder_out, incremental_state), None
        else:
            x, attention = self.every_step(prev_output_tokens, encoder_out)
        return x, {"attn": [attention], "inner_states": None}

    def extract_features_scriptable(self, *args, **kwargs):
        """``extract_features``."""
        return self.extract_features(*args, **kwargs)

    def every_step(self, tokens: Tensor, encoder_out: Dict):
        """The mask after each of the tokens (B, T): features (B, T, D) and attention (B, T, S)."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        layout = self.layout(everywhere, everywhere.long(), lone=True, nar_sees_bos=True)
        memory = self.memory(encoder_out)
        seen = []  # the last layer's queries of the encoder
        projection = self.layers[-1].encoder_attn.q_proj
        handle = None if self.training else projection.register_forward_hook(lambda m, i, out: seen.append(out))
        try:
            x = self.cells(tokens, memory, layout).view(*tokens.shape, -1)
        finally:
            if handle is not None:
                handle.remove()
        if self.training:
            return x, None
        attention = self.layers[-1].encoder_attn
        queries = split_heads(attention, seen[0].view(*tokens.shape, -1))
        return x, mean_attention(attention, queries, memory.keys[-1], memory.allowed)

    def step(self, tokens: Tensor, encoder_out: Dict, incremental_state: Dict) -> Tensor:
        """The tokens (B, T) that are not yet in the state, with a mask after each: features (B, new, D)."""
        state = self.get_incremental_state(incremental_state, "main")
        if state is None:
            state = {"cache": self.start(encoder_out), "fed": 0}
        fed, length = state["fed"], tokens.size(1)
        rows = torch.arange(length - fed, device=tokens.device).expand(tokens.size(0), -1)
        lengths = tokens.new_full((tokens.size(0),), fed)
        x = self.block(tokens[:, fed:], lengths, state["cache"], 1, rows, longest=fed)
        self.set_incremental_state(incremental_state, "main", {"cache": state["cache"], "fed": length})
        return x.squeeze(2)

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        """A beam's hypotheses change places; while their number stays, so do their sentences, as in fairseq's attention."""
        state = self.get_incremental_state(incremental_state, "main")
        if state is not None:
            state["cache"].select(new_order, memory=new_order.numel() != state["cache"].rows)

    # -- decoding --------------------------------------------------------------------------------------------------------

    def start(self, encoder_out: Dict) -> BangCache:
        """The empty cache of a batch, from fairseq's encoder output; ``cache.select(rows)`` drops finished rows."""
        return BangCache(self.memory(encoder_out))

    def block(
        self,
        tokens: Tensor,
        lengths: Tensor,
        cache: BangCache,
        masks: int,
        rows: Tensor,
        longest: Optional[int] = None,
        sees_start: Optional[bool] = None,
    ) -> Tensor:
        """One decoding pass: feed new main tokens, and ask rows of masks after some of them.

        A mask sees the main tokens up to ``tokens[rows]``, that token included, and the masks before it in its row. The main
        tokens join the cache, where ``lengths`` of the next call says how many of them stay; the masks do not.

        Args:
            tokens: (b, m) int64, m >= 1; the first call's begin with the start token. Whatever pads a row at the end of its
                tokens does no harm as long as ``lengths`` does not count it afterwards.
            lengths: (b,) int64, main tokens of each row that are in the cache and stay.
            masks: n, how many masks each row has.
            rows: (b, r) int64, the index inside ``tokens`` after which each of the r rows stands. Mask j of a row predicts
                the token that comes j + 1 after it. r = 1 for a draft; every index of ``tokens`` to verify them all.
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


@register_model("bang")
class BangModel(TransformerModel):
    """One set of weights for autoregressive, non-autoregressive and every decoding between.

    Post-norm, GELU, learned positions, one table of embeddings without scale, and the release's parameter names, so that its
    checkpoints load unchanged. What fairseq's ``--max-source-positions`` and ``--max-target-positions`` say is the size of the
    tables of positions; the release's have 512.
    """

    generators = ("bang", "beam")

    @classmethod
    def add_args(cls, parser):
        """``TransformerModel``'s flags and those of the rows."""
        TransformerModel.add_args(parser)
        parser.add_argument("--ngram", type=int, metavar="N",
                            help="streams in training: the most masks that a row has (0: as many as the target has tokens)")
        parser.add_argument("--nar-sees-bos", action=BooleanOptionalAction,
                            help="masks from the start of the target see the start token (default), as in pre-training; "
                                 "--no-nar-sees-bos for what was fine-tuned with the official code")  # fmt: skip

    @classmethod
    def build_model(cls, args, task):
        """Build and initialise.

        Raises:
            ValueError: a flag of fairseq's that has no meaning here, or a number of streams below 0.
        """
        for flag in NOT_BANG:
            if getattr(args, flag, None):
                raise ValueError(f"--{flag.replace('_', '-')} does not work with --arch {args.arch}: leave it out")
        if args.ngram < 0:
            raise ValueError(f"--ngram {args.ngram}: give the number of streams, or 0 for as many as a target has tokens")
        bang_parts(args)
        model = super().build_model(args, task)
        initialise(model)
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return BangEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return BangDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """None; that it exists makes the task tell the criterion the number of the update, which decides the sampled rows."""
        return {}

    def row_sizes(self, real: Tensor, target_idx: Optional[Tensor] = None) -> Tensor:
        """The cells of every row with the model's streams; see ``cells.row_sizes``."""
        return row_sizes(real, target_idx, self.args.ngram)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        target: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        target_idx: Optional[Tensor] = None,
        sizes: Optional[Tensor] = None,
        lone: bool = True,
        label_smoothing: float = 0.0,
        **kwargs,
    ):
        """fairseq's forward (autoregressive logits); with ``target``, the losses of the cells.

        The losses are computed here because the gradients of data-parallel training are collected around this call, and the
        logits are made in chunks, again in the backward pass, so that few of them are in memory at a time.

        Args:
            src_tokens: (B, S) int64.
            prev_output_tokens, target: (B, T) int64, padded on the right; the token before each target, and the target.
            positions: (B, T) int64, every main token's row of the table of positions: pad + 1 + its index in the text;
                None: pad + 1, pad + 2, ...
            target_idx: (B, T) int64, every target's index inside its span, 0 on padding; None: a sentence is one span.
            sizes: (B, T) int64, the cells that are wanted of every row, from its first; None: all of ``row_sizes``.
            lone: also the first cell of every row.

        Returns:
            with ``target`` a ``CellLosses``.
        """
        if target is None:
            return super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)
        real = target.ne(self.decoder.padding_idx)
        sizes = self.row_sizes(real, target_idx) if sizes is None else sizes
        layout = self.decoder.layout(real, sizes, lone, positions)
        memory = self.decoder.memory(self.encoder(src_tokens, src_lengths=src_lengths))
        features = self.decoder.cells(prev_output_tokens, memory, layout)
        cells = layout.cells
        words = target[cells.sentence, cells.start + cells.offset]
        return CellLosses(*chunked_word_losses(self.decoder.output_layer, features, words, label_smoothing), cells)

    def upgrade_state_dict_named(self, state_dict, name):
        """Raise, saying how they differ, for a checkpoint whose vocabulary or positions are not the model's.

        A vocabulary that lacks only its last row, ``<mask>``, is accepted.
        """
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        for side, flag in (("encoder", "source"), ("decoder", "target")):
            for part in ("embed_tokens", "embed_positions"):
                key = f"{side}.{part}.weight"
                stored, own = state_dict.get(prefix + key), self.get_parameter(key)
                if stored is None or stored.shape == own.shape:
                    continue
                there, here = len(stored), len(own)
                if stored.size(1) != own.size(1):
                    raise ValueError(f"{key} is {stored.size(1)} wide in the checkpoint and {own.size(1)} here: "
                                     "give the --arch or --encoder-embed-dim that it was trained with")  # fmt: skip
                if part == "embed_tokens" and there + 1 != here:
                    raise ValueError(f"the vocabulary has {there} symbols in the checkpoint and {here} here ({key}): "
                                     "binarise the data with its dictionary (fairseq-preprocess --srcdict)")  # fmt: skip
                if part == "embed_positions":
                    most = getattr(self.args, f"max_{flag}_positions")
                    raise ValueError(f"the {side} has {most + there - here} positions in the checkpoint and {most} here: "
                                     f"give --max-{flag}-positions {most + there - here}")  # fmt: skip


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """BERT's start: N(0, 0.02) for tables and linear layers; the fused self-attention of the decoder keeps Xavier's."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(std=0.02)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    for module in model.modules():  # afterwards, because the output projection is the table of embeddings
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def bang_parts(args) -> None:
    """What every ``bang`` is made of, whatever the flags say."""
    switch_on(args, "share_all_embeddings", "share_decoder_input_output_embed", "encoder_learned_pos",
              "decoder_learned_pos", "layernorm_embedding", "no_scale_embedding")  # fmt: skip
    args.length_head = "none"


@register_model_architecture("bang", "bang")
def bang(args):
    """The sizes of fairseq's ``transformer``."""
    default(args, ngram=0, nar_sees_bos=True, activation_fn="gelu")
    bang_parts(args)
    transformer_base(args)


@register_model_architecture("bang", "bang_tiny")
def bang_tiny(args):
    """For tests and tries: 2+2 layers, 64/128, 4 heads."""
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    bang(args)


def released(args, **size) -> None:
    """A size of the release, with its dropout."""
    sizes(args, **size)
    default(args, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)
    bang(args)


@register_model_architecture("bang", "bang_base")
def bang_base(args):
    """The paper's: 6+6 layers, 768/3072, 12 heads."""
    released(args, dim=768, ffn=3072, heads=12, layers=6)


@register_model_architecture("bang", "bang_middle")
def bang_middle(args):
    """6+6 layers, 1024/4096, 16 heads."""
    released(args, dim=1024, ffn=4096, heads=16, layers=6)


@register_model_architecture("bang", "bang_large")
def bang_large(args):
    """12+12 layers, 1024/4096, 16 heads."""
    released(args, dim=1024, ffn=4096, heads=16, layers=12)


# the release has one model a mode; here all are ``bang``
for _mode in ("bang_ar", "bang_nar", "bang_ar_nar_mixed"):
    for _size, _arch in (("base", bang_base), ("middle", bang_middle), ("large", bang_large)):
        register_model_architecture("bang", f"{_mode}_{_size}")(_arch)
