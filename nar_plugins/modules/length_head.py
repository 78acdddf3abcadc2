"""How long will the target be? One table of length vectors, read by a LENGTH token or by a pooled encoder state."""

import torch
import torch.nn as nn
from torch import Tensor

from nar_plugins.modules.precision import full

LENGTH_HEADS = ("token", "pooled")


class LengthHead(nn.Module):
    """p(length | source), over the lengths 1..classes-1 in tokens, ``</s>`` included.

    ``token`` is Mask-Predict's (Ghazvininejad et al. 2019, section 3.3 and the release): row 0 of the table, the LENGTH
    vector, stands in front of the embedded source without a position, and its top state is compared with all rows.
    ``pooled`` is fairseq's: the mean of the encoder's states is compared with them.

    Args:
        classes: number of rows, the maximum target length plus one class that can never be chosen (length 0).
        embed_dim: D.
        form: "token" or "pooled".
    """

    tables = {"table": "weight"}  # that a prepared model reads through a ``HalfTable``

    def __init__(self, classes: int, embed_dim: int, form: str):
        super().__init__()
        self.form, self.table = form, None
        self.weight = nn.Parameter(torch.empty(classes, embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)

    def token(self, batch: int) -> Tensor:
        """The LENGTH vector for every sentence: (B, 1, D)."""
        if self.table is None:
            return self.weight[0].expand(batch, 1, -1)
        return self.table.rows(torch.zeros(1, 1, dtype=torch.int64, device=self.weight.device)).expand(batch, 1, -1)

    def vectors(self) -> Tensor:
        """The table, (classes, D)."""
        return self.weight if self.table is None else self.table.all()

    def pool(self, states: Tensor, padding: Tensor) -> Tensor:
        """Mean over the real positions: states (S, B, D), padding (B, S) bool -> (B, D)."""
        real = (~padding).T.unsqueeze(-1).to(states)
        return (states * real).sum(0) / real.sum(0)

    def forward(self, state: Tensor) -> Tensor:
        """State (B, D) -> log-probabilities (B, classes) in float32 (or float64); length 0 has -inf."""
        logits = full(nn.functional.linear(state, self.vectors()))
        impossible = torch.zeros_like(logits, dtype=torch.bool)
        impossible[:, 0] = True
        return logits.masked_fill(impossible, -float("inf")).log_softmax(-1)
