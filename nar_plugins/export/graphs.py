"""The parts of a model that become ONNX graphs, as modules of tensors in and tensors out.

A model of one pass is one graph, from the source to the tokens of the canvas (``OnePass``). An iterative one is two:
the encoder (``Encoder``), and one pass of the decoder (``Pass``), which the loop outside calls as often as it likes.
That of a directed acyclic graph is two as well: its vertices and links (``Vertices``), and the tokens of some vertices
(``Words``); the path through them is found outside.

Shapes: B sentences of S tokens; N canvases a sentence of T positions, of which P are predicted; L vertices; V symbols;
H heads; D the model's width.
"""

import copy
import math
from typing import Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq import utils
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

from nar_plugins.generators.canvas.base import plan_lengths
from nar_plugins.generators.canvas.lengths import candidate_lengths
from nar_plugins.models.contract import Canvas, Memory, Plan
from nar_plugins.modules import source_copy
from nar_plugins.modules.attention import allowed_keys
from nar_plugins.modules.exporting import canvas_width

SHORTEST = 2  # tokens of a predicted length, ``</s>`` counted, as in ``CanvasGenerator.lengths``


class SinusoidalPositions(nn.Module):
    """fairseq's sinusoidal positions, as a table of all that can occur.

    fairseq's module asks for the shape of its input as a tensor, which has no values under torch.export.

    Args:
        module: fairseq's. longest: tokens of the longest input.
    """

    def __init__(self, module: SinusoidalPositionalEmbedding, longest: int):
        super().__init__()
        self.pad, self.max_positions = module.padding_idx, longest
        self.register_buffer("table", module.get_embedding(longest + self.pad + 1, module.embedding_dim, self.pad))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        return F.embedding(utils.make_positions(tokens, self.pad), self.table)


def traceable(model: nn.Module, longest_source: int, longest_canvas: int) -> nn.Module:
    """A copy of a model in evaluation mode whose modules torch.export can follow; the numbers are the model's.

    Args:
        longest_source, longest_canvas: tokens of the longest inputs of encoder and decoder.
    """
    copied = copy.deepcopy(model).requires_grad_(False)
    copied.eval()  # not chained: it returns None after fairseq's make_generation_fast_
    for part, longest in ((copied.encoder, longest_source), (copied.decoder, longest_canvas)):
        if isinstance(part.embed_positions, SinusoidalPositionalEmbedding):
            part.embed_positions = SinusoidalPositions(part.embed_positions, longest)
        for layer in part.layers.children():
            vars(layer).pop("forward", None)  # --checkpoint-activations: only training computes twice
    return copied


def ban_of(symbols: int, banned: Sequence[int]) -> Tensor:
    """What is added to logits so that some symbols are never output: (V,), 0, and -inf for these."""
    ban = torch.zeros(symbols)
    ban[list(banned)] = -math.inf
    return ban


def best_tokens(logits: Tensor, ban: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The most probable allowed tokens (...) int64 of logits (..., V), as ``CanvasGenerator.best_tokens``; their
    log-probabilities (...), of the softmax over all V; and those of all V (..., V).

    All are computed, although only one is wanted: ONNX Runtime's ReduceLogSumExp takes several times as long as
    LogSoftmax, and is less exact (``benchmarks/bench_onnx_lprobs.py``).
    """
    tokens = (logits + ban).argmax(-1)
    lprobs = logits.log_softmax(-1)
    return tokens, lprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), lprobs


class OnePass(nn.Module):
    """A whole model of one pass.

    Args:
        model: of the contract, ``traceable``, with ``predicts`` "lengths", "fertilities" or None (CTC).
        symbols: V. pad: padding's index. banned: symbols that are never output.
        beam: N, the candidate lengths of a sentence. average: take the expected fertilities, not the most probable.
    """

    def __init__(self, model: nn.Module, symbols: int, pad: int, banned: Sequence[int], beam: int, average: bool):
        super().__init__()
        self.model, self.pad, self.beam, self.average = model, pad, beam, average
        self.register_buffer("ban", ban_of(symbols, banned))
        self.limit = model.max_decoder_positions()

    def forward(self, src_tokens: Tensor, longest: Optional[Tensor] = None) -> Tuple[Tensor, ...]:
        """Decode a batch.

        Args:
            src_tokens: (B, S) int64, padded on the right.
            longest: (B,) int64, tokens of the longest outputs, ``</s>`` counted; not read with CTC.

        Returns:
            tokens: (B, N, T) int64, padding beyond the lengths. lprobs: (B, N, T) float32, 0 beyond the lengths.
            lengths: (B, N) int64. keep: (B, N) bool, False for a duplicate.
        """
        memory = self.model.encode(src_tokens)
        sources = src_tokens.ne(self.pad).sum(1)
        plan, keep = self.plan(memory, sources, src_tokens.size(1), longest)
        canvas = self.model.canvas(memory, plan)
        tokens, lprobs, _ = best_tokens(self.model.project(self.model.decode(canvas, memory)), self.ban)
        beyond = canvas.padding
        shape = (*keep.shape, -1)
        return (
            tokens.masked_fill(beyond, self.pad).reshape(shape),
            lprobs.masked_fill(beyond, 0.0).reshape(shape),
            (~beyond).sum(1).reshape(keep.shape),
            keep,
        )

    def plan(self, memory: Memory, sources: Tensor, width: int, longest: Optional[Tensor]) -> Tuple[Plan, Tensor]:
        """The plan of the canvases, and which of them to keep, (B, N) bool.

        Args:
            sources: (B,) int64, tokens of every source. width: S. longest: see ``forward``.
        """
        sentences = torch.arange(sources.size(0), device=sources.device)
        all_kept = torch.ones_like(sources, dtype=torch.bool).unsqueeze(1)
        if self.model.predicts is None:
            return Plan(sentences, width=self.model.args.upsample * width), all_kept
        if self.model.predicts == "fertilities":
            lprobs = self.model.fertility_lprobs(memory)
            probabilities = lprobs.exp()
            fertilities = source_copy.average(probabilities) if self.average else probabilities.argmax(-1)
            fertilities = source_copy.bounded(fertilities, sources, longest.clamp(max=self.limit))
            return Plan(
                sentences, fertilities=fertilities, width=canvas_width(fertilities.sum(1), self.limit)
            ), all_kept
        lengths, keep = candidate_lengths(self.model.length_lprobs(memory), self.beam, longest, SHORTEST)
        plan = plan_lengths(lengths)
        return plan._replace(width=canvas_width(plan.lengths, self.limit)), keep


class Encoder(nn.Module):
    """The encoder of an iterative model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, src_tokens: Tensor) -> Tuple[Tensor, ...]:
        """src_tokens (B, S) int64 -> log-probabilities of lengths (B, classes), and of every layer's cross-attention
        the keys and the values, each (B, H, S, D/H).
        """
        memory = self.model.encode(src_tokens)
        pairs = zip(memory.keys, memory.values)
        return (self.model.length_lprobs(memory), *(states for pair in pairs for states in pair))


class Pass(nn.Module):
    """One pass of the decoder of an iterative model; see ``OnePass`` for the arguments."""

    def __init__(self, model: nn.Module, symbols: int, pad: int, banned: Sequence[int]):
        super().__init__()
        self.model, self.pad = model, pad
        self.register_buffer("ban", ban_of(symbols, banned))

    def forward(self, tokens: Tensor, picked: Tensor, src_tokens: Tensor, *memory: Tensor) -> Tuple[Tensor, Tensor]:
        """Predict the picked positions of canvases.

        Args:
            tokens: (B, N, T) int64, the canvases, padded on the right. picked: (B, N, P) int64, positions of them.
            src_tokens: (B, S) int64. memory: the encoder's keys and values.

        Returns:
            the most probable tokens (B, N, P) int64 and their log-probabilities (B, N, P) float32.
        """
        canvases = tokens.flatten(0, 1)
        encoded = Memory(list(memory[::2]), list(memory[1::2]), allowed_keys(src_tokens.eq(self.pad)), {})
        canvas = Canvas(canvases, canvases.eq(self.pad))
        features = self.model.decode(canvas, encoded, picked.flatten(0, 1))
        best, lprobs, _ = best_tokens(self.model.project(features), self.ban)
        return best.view_as(picked), lprobs.view_as(picked)


class Vertices(nn.Module):
    """A model of directed acyclic graphs, without the tokens of the vertices.

    Args:
        model: of the contract, ``traceable``, with ``links``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, src_tokens: Tensor) -> Tuple[Tensor, ...]:
        """src_tokens (B, S) int64 -> features of the vertices (B, L, D), log-probabilities of the links (B, L, L), -inf
        where there is none, and the number of vertices of each sentence, (B,) int64.
        """
        sentences = torch.arange(src_tokens.size(0), device=src_tokens.device)
        memory = self.model.encode(src_tokens)
        canvas = self.model.canvas(memory, Plan(sentences))
        features = self.model.decode(canvas, memory)
        return features, self.model.links(features, canvas), canvas.lengths()


class Words(nn.Module):
    """The tokens of vertices; see ``OnePass`` for the arguments.

    Args:
        eos: index of ``</s>``, the token of every graph's last vertex.
    """

    def __init__(self, model: nn.Module, symbols: int, pad: int, banned: Sequence[int], eos: int):
        super().__init__()
        self.model, self.eos = model, eos
        self.register_buffer("ban", ban_of(symbols, banned))

    def forward(self, features: Tensor) -> Tuple[Tensor, ...]:
        """features (P, D) -> the most probable tokens (P,) int64, their log-probabilities (P,), and those of ``</s>``
        (P,).
        """
        tokens, lprobs, of_all = best_tokens(self.model.project(features), self.ban)
        return tokens, lprobs, of_all[:, self.eos]
