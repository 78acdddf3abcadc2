"""What the tests of BANG compare with: its mask by definition, and a plain decoder over any sequence with any mask."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from conftest import source_batch
from tiny import model

from nar_plugins.modules.relative_positions import bucket

PAD, EOS, WORDS = 1, 2, 20
SOURCE = source_batch([5, 9, 4], WORDS)


@lru_cache(maxsize=None)
def random_bang(*flags, seed=1, dtype=torch.float64):
    """A tiny model whose every part matters to its output, in evaluation mode, and its task."""
    one, task = model(*flags, arch="bang_tiny", criterion="bang_loss", words=WORDS, seed=seed)
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if "layer_norm" not in name and weight.dim() > 1:
                weight.normal_(std=0.3)
    return one.to(dtype).eval(), task


def inputs(lengths, seed=3):
    """Targets (B, T) of these lengths with </s>, and the tokens before them."""
    target = source_batch(lengths, WORDS, seed=seed)
    before = F.pad(target[:, :-1], (1, 0), value=EOS)
    return target, before.masked_fill(target.eq(PAD), PAD)


def visible(length: int, streams: int) -> torch.Tensor:
    """Cross-stream visibility (Qi et al. 2021, figure 1), by definition: ((1 + N) * T, (1 + N) * T) bool,
    stream-major, the main stream first.

    M_t sees M_0 .. M_t. S_{k,t} with s = t - k + 1 >= 0 sees M_0 .. M_s and S_{i,s+i-1} for i = 1 .. k.
    """
    seen = torch.zeros(1 + streams, length, 1 + streams, length, dtype=torch.bool)
    for t in range(length):
        for i in range(t + 1):
            seen[0, t, 0, i] = True
    for k in range(1, streams + 1):
        for t in range(k - 1, length):
            s = t - k + 1
            for i in range(s + 1):
                seen[k, t, 0, i] = True
            for i in range(1, k + 1):
                seen[k, t, i, s + i - 1] = True
    return seen.flatten(2).flatten(0, 1)


def stream_positions(length: int, streams: int, pad: int = PAD) -> torch.Tensor:
    """Position ids of the dense sequence, ((1 + N) * T,): M_t has pad + 1 + t, a mask at t one more."""
    place = torch.arange(length) + pad + 1
    return torch.cat([place] + [place + 1] * streams)


def dense_attention(attention, x, positions, seen):
    """``NStreamAttention`` over x (B, L, D) with position ids (L,) and a mask (L, L), everything materialised."""
    heads, width = attention.num_heads, attention.head_dim
    q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in (q, k, v))
    relative = attention.relative_linear(x).unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
    y = dense_core(q, k, v, relative, dense_buckets(positions), seen)
    return attention.out_proj(y.transpose(1, 2).flatten(2))


def dense_buckets(positions):
    """Position ids (L,) -> the bucket of every pair (L, L)."""
    distance = positions.unsqueeze(1) - positions
    table = torch.tensor([bucket(d) for d in range(int(distance.max()) + 1)])
    return table[distance.clamp(min=0)]


def dense_core(q, k, v, relative, index, seen):
    """Attention (B, H, L, D/H) of unscaled q with the biases relative (B, H, L, 32) of the buckets (L, L), where seen
    (L, L).
    """
    bias = relative.gather(3, index.expand(*relative.shape[:3], -1)).masked_fill(~seen, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, bias)


def dense_decoder(one, encoder_out, tokens, positions, seen):
    """Features (B, L, D) of a plain decoder.

    Args:
        tokens: (B, L) int64, -1 for a mask. positions: (L,) position ids. seen: (L, L) bool.
    """
    decoder = one.decoder
    mask = decoder.ngram_input_embed.weight[0]
    contents = torch.where(tokens.unsqueeze(-1).lt(0), mask, decoder.embed_tokens(tokens.clamp(min=0)))
    x = decoder.emb_layer_norm(contents + decoder.embed_positions.weight[positions])
    states = encoder_out["encoder_out"][0].transpose(0, 1)
    padding = encoder_out["encoder_padding_mask"][0]
    for layer in decoder.layers:
        x = layer.self_attn_layer_norm(x + dense_attention(layer.ngram_self_attn, x, positions, seen))
        cross = layer.encoder_attn
        q, k, v = (
            part.unflatten(-1, (cross.num_heads, -1)).transpose(1, 2)
            for part in (cross.q_proj(x), cross.k_proj(states), cross.v_proj(states))
        )
        weights = (
            (q @ k.transpose(-1, -2) * cross.head_dim**-0.5).masked_fill(padding[:, None, None], -math.inf).softmax(-1)
        )
        x = layer.encoder_attn_layer_norm(x + cross.out_proj((weights @ v).transpose(1, 2).flatten(2)))
        x = layer.final_layer_norm(x + layer.fc2(F.gelu(layer.fc1(x))))
    return x


def row(one, encoder_out, known, masks: int, sees_no_bos: bool = False):
    """A row by itself: the causal run over the tokens (B, s + 1) it knows and its masks; features (B, masks, D).

    Args:
        sees_no_bos: it does not see the tokens at all (the release's NAR).
    """
    count = known.size(1)
    tokens = F.pad(known, (0, masks), value=-1)
    place = torch.arange(count + masks) + PAD + 1
    place[count:] = torch.arange(masks) + count + PAD + 1  # a mask stands one further right than the token before it
    seen = torch.ones(count + masks, count + masks, dtype=torch.bool).tril()
    if sees_no_bos:
        seen[count:, :count] = False
    return dense_decoder(one, encoder_out, tokens, place, seen)[:, count:]
