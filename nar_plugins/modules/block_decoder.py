"""Several new tokens a call on top of a cache, with the parameters of any of fairseq's Transformer decoders.

fairseq's own incremental decoder keeps only the last of the tokens that it is given, and knows one position for all
rows (``transformer_decoder.py``, ``extract_features_scriptable``), so a block of proposals cannot be fed to it.
"""

import math
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import MultiheadAttention, SinusoidalPositionalEmbedding
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor

from nar_plugins.modules.attention import allowed_sources, attend, split_heads
from nar_plugins.modules.kv_cache import Slots
from nar_plugins.modules.memory import Memory


class BlockCache:
    """What a decoder keeps of the sentences that are still being decoded.

    A query at position p sees the slots 0 to p, which are the accepted ones and those of its own call. Whatever pads a
    row's tokens at their end is overwritten like rejected tokens.

    Attributes:
        memory: of the encoded sources.
        own: keys and values (B, room, ...) of the decoder's inputs; a slot is the input's position.
    """

    def __init__(self, memory: Memory):
        self.memory, self.own = memory, Slots()

    @property
    def rows(self) -> int:
        """B, the sentences it holds."""
        return self.memory.keys[0].size(0)

    def select(self, rows: Tensor, memory: bool = True) -> None:
        """Keep these rows, (n,) int64; they may repeat.

        Args:
            memory: False: the rows' sentences stay where they are (a beam's hypotheses change places), only the
                decoder's inputs move.
        """
        if memory:
            self.memory = self.memory.select(rows)
        self.own.select(rows)


class BlockDecoder:
    """A decoder of fairseq's that takes blocks; it holds no parameters of its own.

    Args:
        decoder: in evaluation mode.
        proposes: what the model drafts with, "heads" or "sequential heads"; None: it has nothing of its own.

    Raises:
        ValueError: its layers are not the stock Transformer's; the message says what differs.
    """

    masks = 0  # after every token; a BANG decoder's ``BangBlockDecoder`` has them

    def __init__(self, decoder, proposes: Optional[str] = None):
        refuse_other_decoders(decoder)
        self.decoder, self.proposes = decoder, proposes

    def start(self, encoder_out: Dict) -> BlockCache:
        """The cache of a batch, from fairseq's encoder output."""
        states = [encoder_out["encoder_out"][0].transpose(0, 1)] * len(self.decoder.layers)
        attentions = [layer.encoder_attn for layer in self.decoder.layers]
        return BlockCache(Memory.of(attentions, states, allowed_sources(encoder_out), contiguous=True))

    def __call__(
        self,
        tokens: Tensor,
        first: Tensor,
        least: int,
        last: int,
        longest: int,
        cache: BlockCache,
        weights: bool = False,
    ) -> tuple:
        """Features of new inputs.

        Args:
            tokens: (B, m) int64, which follow what is in the cache.
            first: (B,) int64, the position of each row's first token (how many inputs it has in the cache).
            least, last: the smallest and the largest of ``first``, known to the host.
            longest: positions beyond it use its embedding; nobody asks for their result.
            weights: also return the last layer's cross-attention.

        Returns:
            features (B, m, D) before the output layer; attention (B, m, S) float32, the mean over heads, or None.
        """
        block, width = tokens.size(1), last + tokens.size(1)
        slots = first.unsqueeze(1) + torch.arange(block, device=tokens.device)
        x = self.embed(tokens, slots.clamp(max=longest), min(width - 1, longest))
        # (B, 1, m, width): a query sees the slots up to its own; a single row's single query sees all of them
        allowed = None
        if block > 1 or tokens.size(0) > 1:
            later = torch.arange(width, device=tokens.device) > slots.unsqueeze(-1)
            # a bias, which every layer would otherwise make of the bool (under autocast it only casts it)
            allowed = torch.zeros_like(later, dtype=x.dtype).masked_fill_(later, -math.inf).unsqueeze(1)

        attention = None
        for number, layer in enumerate(self.decoder.layers):
            x, asked = self.layer(number, layer, x, slots, allowed, width, least == last, cache)
            if weights and number + 1 == len(self.decoder.layers):
                attention = mean_attention(layer.encoder_attn, asked, cache.memory.keys[number], cache.memory.allowed)
        if self.decoder.layer_norm is not None:
            x = self.decoder.layer_norm(x)
        return (x if self.decoder.project_out_dim is None else self.decoder.project_out_dim(x)), attention

    def logits(self, features: Tensor) -> Tensor:
        """What follows, as the model itself says it: (..., D) -> (..., V)."""
        return self.decoder.output_layer(features)

    def embed(self, tokens: Tensor, positions: Tensor, last: int) -> Tensor:
        """Embeddings of tokens at positions, both (B, m) with 0 as the first: (B, m, D); ``last`` is the largest."""
        decoder = self.decoder
        x = decoder.embed_scale * decoder.embed_tokens(tokens)
        if decoder.quant_noise is not None:
            x = decoder.quant_noise(x)
        if decoder.project_in_dim is not None:
            x = decoder.project_in_dim(x)
        if decoder.embed_positions is not None:
            x = x + positional(decoder.embed_positions, positions, last, decoder.embed_tokens.weight)
        return x if decoder.layernorm_embedding is None else decoder.layernorm_embedding(x)

    def layer(
        self, number: int, layer, x: Tensor, slots: Tensor, allowed, width: int, level: bool, cache: BlockCache
    ) -> tuple:
        """One layer: x (B, m, D), and the queries (B, H, m, D/H) of its cross-attention."""
        mine, theirs, before = layer.self_attn, layer.encoder_attn, layer.normalize_before
        y = layer.self_attn_layer_norm(x) if before else x
        own = cache.own.write(number, slots, mine.k_proj(y), mine.v_proj(y), width, level)
        keys, values = (split_heads(mine, one) for one in own)
        x = x + attend(mine, split_heads(mine, mine.q_proj(y)), keys, values, allowed)
        x = x if before else layer.self_attn_layer_norm(x)

        y = layer.encoder_attn_layer_norm(x) if before else x
        asked = split_heads(theirs, theirs.q_proj(y))
        memory = cache.memory
        x = x + attend(theirs, asked, memory.keys[number], memory.values[number], memory.allowed)
        x = x if before else layer.encoder_attn_layer_norm(x)

        y = layer.final_layer_norm(x) if before else x
        x = x + layer.fc2(layer.activation_fn(layer.fc1(y)))
        return (x if before else layer.final_layer_norm(x)), asked


def block_decoder(model):
    """What decodes blocks with a model: its own ``block_decoder()``, or for one of fairseq's that has none a
    ``BlockDecoder``.
    """
    return model.block_decoder() if hasattr(model, "block_decoder") else BlockDecoder(model.decoder)


def positional(module, positions: Tensor, last: int, like: Tensor) -> Tensor:
    """The embeddings (B, m, D) of positions (B, m) counted from 0; fairseq's modules count from the padding index + 1.

    Args:
        like: a parameter of the same model: of its type and on its device.
    """
    index = positions + module.padding_idx + 1
    if not isinstance(module, SinusoidalPositionalEmbedding):
        return F.embedding(index, module.weight)
    needed = last + module.padding_idx + 2
    if needed > module.weights.size(0):  # fairseq grows its table in the same way
        module.weights = module.get_embedding(needed, module.embedding_dim, module.padding_idx)
    # in fairseq 0.12.2 the table is no buffer: it stays in float32 and on the CPU until the module's own forward
    if module.weights.dtype != like.dtype or module.weights.device != like.device:
        module.weights = module.weights.to(like)
    return module.weights[index]


def mean_attention(attention: MultiheadAttention, queries: Tensor, keys: Tensor, allowed: Optional[Tensor]) -> Tensor:
    """Attention weights, the mean over heads: (B, m, S) float32 for queries (B, H, m, D/H) and keys (B, H, S, D/H)."""
    scores = (queries * attention.scaling) @ keys.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1, dtype=torch.float32).mean(1)


def refuse_other_decoders(decoder) -> None:
    """Raise unless a decoder is made of the stock Transformer's parts, all of which ``BlockDecoder`` knows."""
    name = type(decoder).__name__
    stock = isinstance(decoder, TransformerDecoderBase) and all(
        getattr(type(decoder), method) is getattr(TransformerDecoderBase, method)
        for method in ("extract_features", "extract_features_scriptable")
    )
    if not stock or not all(isinstance(layer, TransformerDecoderLayerBase) for layer in decoder.layers):
        raise ValueError(
            f"--generator blockwise decodes Transformers, and {name} is another decoder: use --generator beam"
        )
    kinds = {type(layer).forward is TransformerDecoderLayerBase.forward for layer in decoder.layers}
    wrong = {
        "adaptive softmax (--adaptive-softmax-cutoff)": decoder.adaptive_softmax is not None,
        "--cross-self-attention": decoder.cross_self_attention,
        "layers of another kind": kinds != {True},
        "no cross-attention": any(layer.encoder_attn is None for layer in decoder.layers),
        "scaled attention, heads, feed-forward layers or residuals": any(
            getattr(layer, part) is not None
            for layer in decoder.layers
            for part in ("attn_ln", "c_attn", "ffn_layernorm", "w_resid")
        ),
        "attention other than the plain one": any(
            attention.bias_k is not None or attention.add_zero_attn or getattr(attention, "use_xformers", False)
            for layer in decoder.layers
            for attention in (layer.self_attn, layer.encoder_attn)
            if attention is not None
        ),
    }
    for what, found in wrong.items():
        if found:
            raise ValueError(f"--generator blockwise cannot decode a model with {what}: use --generator beam")
