"""Decode several new tokens a call on top of a cache, with the parameters of any of fairseq's Transformer decoders.

fairseq's incremental decoder keeps only the last of the tokens that it is given and has one position for all sentences
(``transformer_decoder.py``, ``extract_features_scriptable``), so a block of drafts cannot be fed to it.
"""

import math
from typing import Callable, Dict, Optional

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.modules import MultiheadAttention, SinusoidalPositionalEmbedding
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor

from nar_plugins.modules.attention import allowed_sources, attend, split_heads
from nar_plugins.modules.fast.block_layers import BlockLayers, block_layers
from nar_plugins.modules.fast.linear import shared_input
from nar_plugins.modules.fast.table import position_rows
from nar_plugins.modules.kv_cache import KVCache
from nar_plugins.modules.memory import Memory


class BlockCache:
    """The keys and values that a decoder keeps of the active sentences.

    A query at position p attends to the slots 0 to p: the accepted tokens and those of its own call. Padding after a
    sentence's tokens is overwritten like rejected tokens.

    Attributes:
        memory: keys and values of the encoded sources.
        inputs: keys and values of the decoder's inputs.
        fast: the layers that write them, in their fast form, or None.
    """

    def __init__(self, memory: Memory, fast: Optional[BlockLayers] = None):
        self.memory, self.fast, self.inputs = memory, fast, KVCache()
        self.bias: Optional[Tensor] = None

    @property
    def sentences(self) -> int:
        """B."""
        return self.memory.keys[0].size(0)

    def memory_bias(self) -> Optional[Tensor]:
        """The memory's ``allowed`` as a bias, which attention would else make of it in every layer."""
        allowed = self.memory.allowed
        if allowed is not None and self.bias is None:
            zeros = torch.zeros(allowed.shape, dtype=self.memory.keys[0].dtype, device=allowed.device)
            self.bias = zeros.masked_fill_(~allowed, -math.inf)
        return self.bias

    def select(self, sentences: Tensor, memory: bool = True) -> None:
        """Keep these sentences, (n,) int64; they may repeat.

        Args:
            memory: False: only the decoder's inputs move, because the hypotheses of a beam change places within their
                sentence.
        """
        if memory:
            self.memory, self.bias = self.memory.select(sentences), None
        self.inputs.select(sentences)


class BlockDecoder:
    """One of fairseq's decoders, fed several tokens a call; it adds no parameters.

    Args:
        decoder: in evaluation mode.
        proposes: the model's own drafter, "heads" or "sequential heads"; None: it has none.
        projected: what of the features (..., D) the vocabulary projection is applied to, where ``output_layer`` is not
            the projection alone.

    Attributes:
        fast: the layers in their fast form, where that serves (``modules/fast/block_layers.py``), or None.

    Raises:
        ValueError: its layers are not the stock Transformer's; the message names the difference.
    """

    masks = 0  # after every token; only BANG's ``BangBlockDecoder`` has them

    def __init__(self, decoder, proposes: Optional[str] = None, projected: Optional[Callable[[Tensor], Tensor]] = None):
        refuse_other_decoders(decoder)
        self.decoder, self.proposes, self.projected = decoder, proposes, projected
        self.projects = projected is not None or type(decoder).output_layer is TransformerDecoderBase.output_layer
        self.fast: Optional[BlockLayers] = None

    def start(self, encoder_out: Dict) -> BlockCache:
        """The cache of a batch, from fairseq's encoder output."""
        self.fast = block_layers(self.decoder, self.fast)
        states = [encoder_out["encoder_out"][0].transpose(0, 1)] * len(self.decoder.layers)
        attentions = [layer.encoder_attn for layer in self.decoder.layers]
        memory = Memory.of(attentions, states, allowed_sources(encoder_out), contiguous=True)
        return BlockCache(memory, self.fast)

    def __call__(
        self,
        tokens: Tensor,
        cached: Tensor,
        min_cached: int,
        max_cached: int,
        max_position: int,
        cache: BlockCache,
        weights: bool = False,
    ) -> tuple:
        """Features of new inputs.

        Args:
            tokens: (B, m) int64, the inputs that follow the cached ones.
            cached: (B,) int64, the number of cached inputs, which is the position of each sentence's first new token.
            min_cached, max_cached: the smallest and the largest of ``cached``, known to the host.
            max_position: positions beyond it use its embedding; their output is not used.
            weights: also return the last layer's cross-attention.

        Returns:
            features (B, m, D) before the output layer; attention (B, m, S) float32, the mean over heads, or None.
        """
        new, width = tokens.size(1), max_cached + tokens.size(1)
        positions = cached.unsqueeze(1) + torch.arange(new, device=tokens.device)
        last = min(width - 1, max_position)
        x = self.embed(tokens, positions if last == width - 1 else positions.clamp(max=max_position), last)
        # (B, 1, m, width): a query attends to the slots up to its own; the only query of a sentence alone, to all
        allowed = None
        if new > 1 or tokens.size(0) > 1:
            later = torch.arange(width, device=tokens.device) > positions.unsqueeze(-1)
            # a bias: every layer would make one of a bool, and under autocast it only casts this one
            allowed = torch.zeros_like(later, dtype=x.dtype).masked_fill_(later, -math.inf).unsqueeze(1)

        x, queries = self.layers(x, positions, allowed, width, min_cached == max_cached, cache)
        attention = None
        if weights:
            last = self.decoder.layers[-1].encoder_attn
            attention = mean_attention(last, queries, cache.memory.keys[-1], cache.memory.allowed)
        if self.decoder.layer_norm is not None:
            x = self.decoder.layer_norm(x)
        return (x if self.decoder.project_out_dim is None else self.decoder.project_out_dim(x)), attention

    def logits(self, features: Tensor) -> Tensor:
        """The model's own next-token logits: features (..., D) -> (..., V)."""
        if self.fast is None or self.fast.vocabulary is None or not self.projects:
            return self.decoder.output_layer(features)
        return self.fast.logits(features if self.projected is None else self.projected(features))

    def embed(self, tokens: Tensor, positions: Tensor, last: int) -> Tensor:
        """Embeddings (B, m, D) of tokens (B, m) at positions (B, m), counted from 0; ``last`` is the largest."""
        decoder = self.decoder
        x = decoder.embed_scale * decoder.embed_tokens(tokens)
        if decoder.quant_noise is not None:
            x = decoder.quant_noise(x)
        if decoder.project_in_dim is not None:
            x = decoder.project_in_dim(x)
        if decoder.embed_positions is not None:
            x = x + positional(decoder.embed_positions, positions, last, x)
        return x if decoder.layernorm_embedding is None else decoder.layernorm_embedding(x)

    def layers(self, x: Tensor, positions: Tensor, allowed, width: int, aligned: bool, cache: BlockCache) -> tuple:
        """The output (B, m, D) of the last layer, and the queries (B, H, m, D/H) of its cross-attention."""
        if cache.fast is not None:
            return cache.fast(x, positions, allowed, width, aligned, cache)
        queries = x
        for number, layer in enumerate(self.decoder.layers):
            x, queries = self.layer(number, layer, x, positions, allowed, width, aligned, cache)
        return x, queries

    def layer(
        self, number: int, layer, x: Tensor, positions: Tensor, allowed, width: int, aligned: bool, cache: BlockCache
    ) -> tuple:
        """The output (B, m, D) of a layer, and the queries (B, H, m, D/H) of its cross-attention."""
        self_attn, cross_attn, pre_norm = layer.self_attn, layer.encoder_attn, layer.normalize_before
        y = layer.self_attn_layer_norm(x) if pre_norm else x
        y = shared_input(y, self_attn.q_proj, self_attn.k_proj, self_attn.v_proj)
        states = cache.inputs.write(number, positions, (self_attn.k_proj(y), self_attn.v_proj(y)), width, aligned)
        keys, values = (split_heads(self_attn, each) for each in states)
        x = x + attend(self_attn, split_heads(self_attn, self_attn.q_proj(y)), keys, values, allowed)
        x = x if pre_norm else layer.self_attn_layer_norm(x)

        y = layer.encoder_attn_layer_norm(x) if pre_norm else x
        queries = split_heads(cross_attn, cross_attn.q_proj(y))
        memory = cache.memory
        x = x + attend(cross_attn, queries, memory.keys[number], memory.values[number], memory.allowed)
        x = x if pre_norm else layer.encoder_attn_layer_norm(x)

        y = layer.final_layer_norm(x) if pre_norm else x
        x = x + layer.fc2(layer.activation_fn(layer.fc1(y)))
        return (x if pre_norm else layer.final_layer_norm(x)), queries


def block_decoder(model):
    """The model's own ``block_decoder()``; a ``BlockDecoder`` for one of fairseq's models, which have none."""
    return model.block_decoder() if hasattr(model, "block_decoder") else BlockDecoder(model.decoder)


def positional(module, positions: Tensor, last: int, like: Tensor) -> Tensor:
    """The embeddings (B, m, D) of positions (B, m) counted from 0; fairseq's modules count from the padding index + 1.

    Args:
        last: the largest position.
        like: the embedded tokens; the result has their type and device.
    """
    index = positions + module.padding_idx + 1
    if not isinstance(module, SinusoidalPositionalEmbedding):
        return position_rows(module, index)
    size = last + module.padding_idx + 2
    if size > module.weights.size(0):  # fairseq grows its table in the same way
        module.weights = module.get_embedding(size, module.embedding_dim, module.padding_idx)
    # in fairseq 0.12.2 the table is no buffer: it stays in float32 and on the CPU until the module's own forward
    if module.weights.dtype != like.dtype or module.weights.device != like.device:
        module.weights = module.weights.to(like)
    return F.embedding(index, module.weights)


def mean_attention(attention: MultiheadAttention, queries: Tensor, keys: Tensor, allowed: Optional[Tensor]) -> Tensor:
    """Attention weights, the mean over heads: (B, m, S) float32 for queries (B, H, m, D/H) and keys (B, H, S, D/H)."""
    scores = (queries * attention.scaling) @ keys.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1, dtype=torch.float32).mean(1)


def refuse_other_decoders(decoder) -> None:
    """Raise unless a decoder consists of the stock Transformer's parts only, which ``BlockDecoder`` serves."""
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
    unserved = {
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
    for what, present in unserved.items():
        if present:
            raise ValueError(f"--generator blockwise cannot decode a model with {what}: use --generator beam")
