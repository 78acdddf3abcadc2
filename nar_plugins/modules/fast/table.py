"""Tables of vectors in a prepared model: in int8 with a scale for each row, where decoding is in int8."""

from typing import Dict, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.int8 import Int8Weight, int8_product, quantise, quantise_weight

COPIED = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


class PreparedTable:
    """A parameter (rows, D) that is looked up.

    Args:
        source: the dictionary of parameters of the module that owns it, shared: a new parameter in it is seen.
        name: its name in it.
    """

    def __init__(self, source: Dict[str, Optional[nn.Parameter]], name: str = "weight"):
        self.source, self.names = source, (name,)
        self.prepare(None)

    @property
    def weight(self) -> Tensor:
        """(rows, D), the model's own."""
        return self.source[self.names[0]]

    def prepare(self, dtype: Optional[torch.dtype], int8: Optional[Int8Weight] = None) -> None:
        """Quantise the rows of now for int8; for other types they are read as they are.

        Args:
            int8: the weight of a layer that is tied to the table.
        """
        self.int8 = (int8 or quantise_weight(self.weight.detach())) if dtype == torch.int8 else None
        self.multiply = None if self.int8 is None else int8_product(self.int8, None)

    def rows(self, indices: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        if self.int8 is None:
            return F.embedding(indices, self.weight)
        return F.embedding(indices, self.int8.numbers) * F.embedding(indices, self.int8.scales)

    def row(self, index: int) -> Tensor:
        """(D,)."""
        return self.weight[index] if self.int8 is None else self.int8.numbers[index] * self.int8.scales[index]

    def product(self, x: Tensor) -> Tensor:
        """The products (..., rows) of x (..., D) with all rows.

        In int8, what the first quantisation of x leaves out is quantised again, so that only the weight is rounded.
        """
        if self.int8 is None:
            return F.linear(x, self.weight)
        rows = quantise(x)
        rest = x - (rows.numbers * rows.scales + rows.offsets).view_as(x)
        return self.multiply(rows) + self.multiply(rest)


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
