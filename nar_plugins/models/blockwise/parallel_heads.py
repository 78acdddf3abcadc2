"""The proposal heads of blockwise parallel decoding (Stern et al. 2018, section 6 and figure 3)."""

from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules import FairseqDropout
from torch import Tensor

HEADS = ("full", "diag", "sequential")  # the last: sequential_heads.py


class ProposalHeads(nn.Module):
    """n heads on the decoder's output, each a residual feed-forward layer before the shared vocabulary projection.

    ``full`` is the paper's: every head sees one hidden layer of n * F units (T2T ``transformer_parallel.py``, lines 48
    to 67), n (n + 1) D F parameters. ``diag`` gives every head F separate units, 2 n D F parameters. The second layer
    starts at zero, so that every head starts as the base's next-token prediction. All heads are stacked in the same
    tensors, so that every parameter has a gradient, whichever head is sampled.

    Args:
        heads: n. dim: D. hidden: F, the units per head.
    """

    def __init__(self, heads: int, dim: int, hidden: int, kind: str, dropout: float, activation_dropout: float):
        super().__init__()
        self.heads, self.dim, self.hidden, self.kind = heads, dim, hidden, kind
        self.hidden_layer = nn.Linear(dim, heads * hidden)
        nn.init.xavier_uniform_(self.hidden_layer.weight)
        nn.init.zeros_(self.hidden_layer.bias)
        self.weight = nn.Parameter(torch.zeros(heads, dim, heads * hidden if kind == "full" else hidden))
        self.bias = nn.Parameter(torch.zeros(heads, dim))
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        self.activation_dropout_module = FairseqDropout(activation_dropout, module_name=type(self).__name__)

    def forward(self, x: Tensor, first: int = 0, last: Optional[int] = None) -> Tensor:
        """The states of heads ``first`` to ``last`` (exclusive; None: all), for the vocabulary projection.

        Args:
            x: (..., D), the decoder's features.

        Returns:
            (..., last - first, D).
        """
        weight, bias = self.weight[first:last], self.bias[first:last]
        if self.kind == "full":
            hidden = self.activate(self.hidden_layer(x))
            out = F.linear(hidden, weight.flatten(0, 1), bias.flatten()).unflatten(-1, bias.shape)
        else:
            layer, units = self.hidden_layer, slice(first * self.hidden, None if last is None else last * self.hidden)
            hidden = self.activate(F.linear(x, layer.weight[units], layer.bias[units])).unflatten(-1, (-1, self.hidden))
            out = torch.einsum("...nf,ndf->...nd", hidden, weight) + bias
        return x.unsqueeze(-2) + self.dropout_module(out)

    def activate(self, hidden: Tensor) -> Tensor:
        return self.activation_dropout_module(F.relu(hidden))

    def multiplications(self) -> tuple:
        """Multiplications for one position: of the part shared by all heads, and of each head."""
        if self.kind == "full":
            return self.hidden_layer.weight.numel(), self.weight[0].numel()
        return 0, 2 * self.weight[0].numel()
