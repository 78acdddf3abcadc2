"""BANG's self-attention: a main stream, and rows of masks on top of it, without a mask over all streams."""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor

from nar_plugins.models.bang.cache import Block
from nar_plugins.models.bang.row_attention import row_attention
from nar_plugins.models.bang.stream_layout import Layout, Rectangle
from nar_plugins.modules.block_decoder import BlockCache
from nar_plugins.modules.relative_positions import BUCKETS


class Projected(NamedTuple):
    """What the attention asks of states (..., D): each (..., H, D/H), ``bias`` (..., H, 33)."""

    queries: Tensor  # scaled
    keys: Tensor
    values: Tensor
    bias: Tensor  # of every bucket; the last, -inf, is that of what is hidden


class NStreamAttention(nn.Module):
    """The release's parameters and names. All streams share them, so a mask and a token differ in what they see only.

    The bias of a key depends on the query's input and on the bucket of the distance of their position ids; it is added
    to the scaled product.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"--decoder-embed-dim {embed_dim} is no multiple of --decoder-attention-heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.relative_linear = nn.Linear(embed_dim, BUCKETS * num_heads)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor) -> Projected:
        """States (..., D) -> queries, keys, values and biases."""
        heads = (self.num_heads, self.head_dim)
        three = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, *heads)).unbind(-3)
        bias = self.relative_linear(x).unflatten(-1, (BUCKETS, self.num_heads)).transpose(-1, -2)
        return Projected(three[0] * self.scaling, three[1], three[2], F.pad(bias, (0, 1), value=-float("inf")))

    def forward(self, x: Tensor, layout: Layout, cells_only: bool = False) -> Tensor:
        """The training pass.

        Args:
            x: (P, D), packed as ``layout`` says.
            cells_only: leave the main tokens' results out (the last layer, where nobody asks for them).

        Returns:
            (P or C, D).
        """
        return self.out_proj(self.rows(self.project(x), layout, cells_only))

    def rows(self, asked: Projected, layout: Layout, cells_only: bool = False) -> Tensor:
        """``forward`` between its projections: packed (P, H, ..) -> packed (P or C, D)."""
        main, *rows = layout.rectangles
        at = main.slots.numel()
        first = Projected(*(main.fill(part[:at]) for part in asked))
        keys, values = first.keys.squeeze(3), first.values.squeeze(3)
        results = [] if cells_only else [main.pack(self.attend(first, keys, values, main, own=False))]
        for rectangle in rows:
            end = at + rectangle.slots.numel()
            its = Projected(*(rectangle.fill(part[at:end]) for part in asked))
            results.append(rectangle.pack(self.attend(its, keys, values, rectangle, own=True)))
            at = end
        return torch.cat(results) if results else asked.queries[:0].flatten(1)

    def attend(self, its: Projected, keys: Tensor, values: Tensor, rectangle: Rectangle, own: bool) -> Tensor:
        """Attention of a rectangle's rows, (B, H, R, N, D/H), before the output projection.

        Args:
            its: (B, H, R, N, ..). keys, values: (B, H, T, D/H) of the main stream.
            own: the row's own masks are keys, too.
        """
        drop = self.dropout_module
        return row_attention(
            its.queries,
            its.bias,
            keys,
            values,
            its.keys if own else None,
            its.values if own else None,
            rectangle.buckets,
            drop.p if self.training or drop.apply_during_inference else 0.0,
        )

    def block(self, x: Tensor, block: Block, cache: BlockCache, layer: int, masks_only: bool = False) -> Tensor:
        """The decoding pass: new main tokens and the masks after them, on top of the cache.

        Args:
            x: (b, m + r*n, D).
            masks_only: leave the main tokens' results out.

        Returns:
            (b, m + r*n or r*n, D).
        """
        queries, keys, values, bias = self.project(x)
        new = block.slots.size(1)
        before = cache.inputs.write(layer, block.slots, keys[:, :new], values[:, :new], block.width)
        keys, values = (torch.cat([old, one[:, new:]], 1).transpose(1, 2) for old, one in zip(before, (keys, values)))
        queries, bias = queries.transpose(1, 2), bias.transpose(1, 2)
        buckets = block.buckets
        if masks_only:
            queries, bias, buckets = queries[:, :, new:], bias[:, :, new:], buckets[:, new:]
        buckets = buckets.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        heads = F.scaled_dot_product_attention(queries, keys, values, bias.gather(-1, buckets), scale=1.0)
        return self.out_proj(heads.transpose(1, 2).flatten(2))
