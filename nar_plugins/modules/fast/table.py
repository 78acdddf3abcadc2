"""Tables of vectors in a prepared model, in fewer bits where decoding is in int8."""

from typing import Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from fairseq.utils import make_positions
from torch import Tensor

from nar_plugins.modules.fast.forms import Int8Form, int8_bytes
from nar_plugins.modules.fast.int8 import quantise_weight

COPIED = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


class PreparedTable:
    """A parameter (rows, D) that is looked up.

    Args:
        source: the dictionary of parameters of the module that owns it, shared: a new parameter in it is seen.
        name: its name in it.
    """

    def __init__(self, source: Dict[str, Optional[nn.Parameter]], name: str = "weight"):
        self.source, self.names, self.int8 = source, (name,), None
        self.prepare(None)

    @property
    def weight(self) -> Tensor:
        """(rows, D), the model's own."""
        return self.source[self.names[0]]

    def prepare(self, dtype: Optional[torch.dtype], int8: Optional[Int8Form] = None) -> None:
        """Quantise the rows of now for int8; for other types they are read as they are.

        Args:
            int8: the weight of a layer that is tied to the table.
        """
        if dtype != torch.int8:
            int8 = None
        elif int8 is None:
            int8 = quantise_weight(self.weight.detach())
        self.int8 = int8

    def rows(self, indices: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        return F.embedding(indices, self.weight) if self.int8 is None else self.int8.rows(indices)

    def bytes(self) -> int:
        """The memory of the table in int8."""
        return int8_bytes(self.weight, looked_up=True)


class HalfTable(PreparedTable):
    """A parameter (rows, D) for which int8 is too coarse: in float16 where decoding is in int8.

    With a length head in int8 other lengths are chosen, and with them other words; an error of a position is added to
    every word there.
    """

    def prepare(self, dtype: Optional[torch.dtype], int8: Optional[Int8Form] = None) -> None:
        self.half = self.weight.detach().half() if dtype == torch.int8 else None

    def all(self) -> Tensor:
        """(rows, D)."""
        return self.weight if self.half is None else self.half.float()

    def rows(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight if self.half is None else self.half).to(self.weight.dtype)

    def bytes(self) -> int:
        return 2 * self.weight.numel()


class PreparedEmbedding(nn.Embedding):
    """An embedding in a prepared model (``prepare.py``); it has no parameters of its own.

    Args:
        source: the one whose place it takes; its dictionary of parameters is shared.
    """

    def __init__(self, source: nn.Embedding):
        nn.Module.__init__(self)
        vars(self).update({name: getattr(source, name) for name in COPIED})
        vars(self)["_parameters"] = source._parameters
        self.table = PreparedTable(source._parameters)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        return self.table.rows(tokens)


class PreparedPositions(LearnedPositionalEmbedding):
    """A table of learned positions in a prepared model, as ``PreparedEmbedding`` is one of words; see ``HalfTable``."""

    def __init__(self, source: LearnedPositionalEmbedding):
        nn.Module.__init__(self)
        vars(self).update({name: getattr(source, name) for name in (*COPIED, "max_positions", "onnx_trace")})
        vars(self)["_parameters"] = source._parameters
        self.table = HalfTable(source._parameters, "weight")

    def forward(self, input: Tensor, incremental_state=None, positions: Optional[Tensor] = None) -> Tensor:
        """The embeddings (B, T, D) of the positions of tokens (B, T) int64; with an incremental state of the last one,
        (1, 1, D).
        """
        if positions is None and incremental_state is not None:
            positions = input.new_full((1, 1), self.padding_idx + input.size(1))
        elif positions is None:
            positions = make_positions(input, self.padding_idx, onnx_trace=self.onnx_trace)
        return self.table.rows(positions)


def position_rows(module: LearnedPositionalEmbedding, indices: Tensor) -> Tensor:
    """Rows of a table of learned positions: (...) int64 -> (..., D)."""
    prepared = isinstance(module, PreparedPositions)
    return module.table.rows(indices) if prepared else F.embedding(indices, module.weight)


def canvas_positions(module: nn.Module, tokens: Tensor, padding: Optional[Tensor]) -> Tensor:
    """The embeddings of the positions of a canvas (R, T): (R, T, D), or on a CPU in evaluation (T, D), then also beyond
    a canvas's length, where nobody reads them.

    fairseq's modules count the tokens that are not padding, in a dozen operations a pass.

    Args:
        padding: (R, T) bool; None: there is none.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks
    if torch.is_grad_enabled() or module.training or torch.compiler.is_exporting() or hooks or not tokens.is_cpu:
        return module(tokens)
    if padding is not None and bool((padding[:, :-1] > padding[:, 1:]).any()):  # on the left, or inside
        return module(tokens)
    width, first = tokens.size(1), module.padding_idx + 1
    if isinstance(module, LearnedPositionalEmbedding):
        return position_rows(module, torch.arange(first, first + width))
    if type(module) is not SinusoidalPositionalEmbedding:
        return module(tokens)
    # fairseq's own forward makes a larger table; in 0.12.2, where it is no buffer, it moves and casts it, too
    table, cast = module.weights, getattr(module, "_float_tensor", module.weights)
    if len(table) < first + width or table.device != tokens.device or table.dtype != cast.dtype:
        return module(tokens)
    return table[first : first + width]
