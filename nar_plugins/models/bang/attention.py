"""BANG's n-stream self-attention, without materialising the mask over all streams."""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor

from nar_plugins.models.bang.cache import DecodingStep
from nar_plugins.models.bang.row_attention import row_attention
from nar_plugins.models.bang.stream_layout import RowGroup, StreamLayout
from nar_plugins.modules.block_decoder import BlockCache
from nar_plugins.modules.fast.linear import shared_input
from nar_plugins.modules.pruned import inputs_of, keep_columns, keep_rows, selected
from nar_plugins.modules.relative_positions import BUCKETS


class Projected(NamedTuple):
    """The projections of states (..., D): each (..., H, D/H), ``bias`` (..., H, 33)."""

    queries: Tensor  # scaled
    keys: Tensor
    values: Tensor
    bias: Tensor  # of every bucket; the last, -inf, is the bucket of hidden keys


class NStreamAttention(nn.Module):
    """The release's parameters and names. All streams share them, so masks and tokens differ in what they see only.

    The bias of a key depends on the query's input and on the bucket of the distance of their position ids. It is added
    to the scaled product.
    """

    products = {"in_proj": ("in_proj_weight", "in_proj_bias")}  # that a prepared model has a layer for

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"--decoder-embed-dim {embed_dim} is no multiple of --decoder-attention-heads {num_heads}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.in_proj = None  # a layer with these parameters, in a model prepared for decoding
        self.relative_linear = nn.Linear(embed_dim, BUCKETS * num_heads)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def keep_heads(self, heads: Tensor) -> None:
        """Remove all heads but these, (n,) int64."""
        rows = inputs_of(heads, self.head_dim)
        all_rows = inputs_of(torch.arange(3), self.num_heads * self.head_dim).view(3, -1)[:, rows].flatten()
        self.in_proj_weight = selected(self.in_proj_weight, 0, all_rows)
        self.in_proj_bias = selected(self.in_proj_bias, 0, all_rows)
        biases = torch.arange(BUCKETS * self.num_heads).view(BUCKETS, self.num_heads)[:, heads]
        keep_rows(self.relative_linear, biases.flatten())
        keep_columns(self.out_proj, rows)
        self.num_heads = len(heads)

    def project(self, x: Tensor) -> Projected:
        """States (..., D) -> queries, keys, values and biases."""
        heads = (self.num_heads, self.head_dim)
        if self.in_proj is None:
            projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        else:
            x = shared_input(x, self.in_proj, self.relative_linear)
            projected = self.in_proj(x)
        queries, keys, values = projected.unflatten(-1, (3, *heads)).unbind(-3)
        bias = self.relative_linear(x).unflatten(-1, (BUCKETS, self.num_heads)).transpose(-1, -2)
        return Projected(queries * self.scaling, keys, values, F.pad(bias, (0, 1), value=-float("inf")))

    def forward(self, x: Tensor, layout: StreamLayout, masks_only: bool = False) -> Tensor:
        """The training pass.

        Args:
            x: (P, D), packed as in ``layout``.
            masks_only: leave out the main tokens' results (the last layer, where nothing reads them).

        Returns:
            (P or C, D).
        """
        return self.out_proj(self.attend_streams(self.project(x), layout, masks_only))

    def attend_streams(self, projected: Projected, layout: StreamLayout, masks_only: bool = False) -> Tensor:
        """``forward`` between its projections: packed (P, H, ..) -> packed (P or C, D)."""
        main, *groups = layout.groups
        end = main.slots.numel()
        stream = Projected(*(main.unpack(part[:end]) for part in projected))
        keys, values = stream.keys.squeeze(3), stream.values.squeeze(3)
        results = [] if masks_only else [main.pack(self.attend(stream, keys, values, main, with_masks=False))]
        for group in groups:
            begin, end = end, end + group.slots.numel()
            rows = Projected(*(group.unpack(part[begin:end]) for part in projected))
            results.append(group.pack(self.attend(rows, keys, values, group, with_masks=True)))
        return torch.cat(results) if results else projected.queries[:0].flatten(1)

    def attend(self, rows: Projected, keys: Tensor, values: Tensor, group: RowGroup, with_masks: bool) -> Tensor:
        """The attention of a group, (B, H, R, N, D/H), before the output projection.

        Args:
            rows: (B, H, R, N, ..). keys, values: (B, H, T, D/H) of the main stream.
            with_masks: the masks of each row are keys, too.
        """
        drop = self.dropout_module
        return row_attention(
            rows.queries,
            rows.bias,
            keys,
            values,
            rows.keys if with_masks else None,
            rows.values if with_masks else None,
            group.buckets,
            drop.p if self.training or drop.apply_during_inference else 0.0,
        )

    def decode_step(
        self, x: Tensor, step: DecodingStep, cache: BlockCache, layer: int, masks_only: bool = False
    ) -> Tensor:
        """The decoding pass: new main tokens and the masks after them, on top of the cache.

        Args:
            x: (b, m + r*n, D).
            masks_only: leave out the main tokens' results.

        Returns:
            (b, m + r*n or r*n, D).
        """
        queries, keys, values, bias = self.project(x)
        new = step.slots.size(1)
        cached = cache.inputs.write(layer, step.slots, (keys[:, :new], values[:, :new]), step.width)
        keys, values = (torch.cat([old, part[:, new:]], 1).transpose(1, 2) for old, part in zip(cached, (keys, values)))
        queries, bias = queries.transpose(1, 2), bias.transpose(1, 2)
        buckets = step.buckets
        if masks_only:
            queries, bias, buckets = queries[:, :, new:], bias[:, :, new:], buckets[:, new:]
        buckets = buckets.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        heads = F.scaled_dot_product_attention(queries, keys, values, bias.gather(-1, buckets), scale=1.0)
        return self.out_proj(heads.transpose(1, 2).flatten(2))
