"""The links between the vertices of a graph: how probable it is that a path goes from one to another (Huang et al.
2022, section 3.3).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nar_plugins.modules.fast.linear import in_int8
from nar_plugins.modules.precision import full

NEVER = -1e9  # finite: a softmax over nothing would be NaN
CPU_LOGITS = 1 << 18  # logits of a group of sentences: they stay in a processor's cache
GPU_LOGITS = 1 << 27


class Links(nn.Module):
    """Attention from every vertex to the later ones; the heads are normalised each, then mixed by a gate.

    What a vertex is known by is the decoder's state beside a learned embedding of its place.

    Args:
        dim: the width of the decoder's states. heads: H. vertices: of the longest graph.
        window: the longest step; 0: any.
    """

    def __init__(self, dim: int, heads: int, vertices: int, window: int = 0):
        super().__init__()
        self.heads, self.window = heads, window
        width = dim // heads * heads
        self.positions = nn.Embedding(vertices, dim)
        self.query, self.key, self.gate = (
            nn.Linear(2 * dim, width),
            nn.Linear(2 * dim, width),
            nn.Linear(2 * dim, heads),
        )
        nn.init.normal_(self.positions.weight, std=dim**-0.5)  # as fairseq's learned positions

    def forward(self, states: Tensor, last: Tensor) -> Tensor:
        """The log-probability of every link: (B, L, L) in float32, from u to v; -inf where v is not after u, is beyond
        the last vertex, or farther than the window.

        Args:
            states: (B, L, D). last: (B,) int64, the last vertex of each graph.
        """
        batch, vertices, _ = states.shape
        places = self.positions.weight[:vertices].to(states)
        queries, keys = (
            known(layer, states, places).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        gates = full(known(self.gate, states, places)).log_softmax(2).transpose(1, 2).unsqueeze(3)
        allowed = self.allowed(vertices, last)
        if torch.compiler.is_exporting():  # a graph has no groups: their number is that of a batch
            return mix(queries, keys, gates, allowed)
        if in_int8(self.query):  # sums over a sentence's own vertices: the same in every batch
            sentences = zip(queries, keys, gates, allowed, (last + 1).tolist())
            return torch.stack([of_sentence(*parts) for parts in sentences])
        logits = batch * self.heads * vertices**2
        budget = CPU_LOGITS if states.device.type == "cpu" else GPU_LOGITS
        groups = [part.split(max(1, batch * budget // logits)) for part in (queries, keys, gates, allowed)]
        # the logits of all heads are computed again in the backward pass, not kept
        mixed = [
            checkpoint(mix, *group, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else mix(*group)
            for group in zip(*groups)
        ]
        return torch.cat(mixed)

    def allowed(self, vertices: int, last: Tensor) -> Tensor:
        """Which links exist: (B, L, L) bool."""
        places = torch.arange(vertices, device=last.device)
        ahead = places - places.unsqueeze(1)
        forward = (ahead > 0) & (ahead <= self.window) if self.window else ahead > 0
        return forward & (places <= last.unsqueeze(1)).unsqueeze(1)


def known(layer: nn.Module, states: Tensor, places: Tensor) -> Tensor:
    """``layer`` of the states beside the embeddings of their places: (B, L, out). The places' share of the product is
    the same for all sentences.

    Args:
        states: (B, L, D). places: (L, D).
    """
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    if hooked or in_int8(layer) or torch.compiler.is_exporting():  # the layer as a whole
        return layer(torch.cat([states, places.expand_as(states)], 2))
    of_states, of_places = layer.weight.split(places.size(1), 1)
    return F.linear(states, of_states) + F.linear(places, of_places, layer.bias)


def mix(queries: Tensor, keys: Tensor, gates: Tensor, allowed: Tensor) -> Tensor:
    """The links of some sentences, in float32 also under autocast.

    Args:
        queries, keys: (b, H, L, d). gates: (b, H, L, 1), log-probabilities. allowed: (b, L, L) bool.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = full(queries) * queries.size(3) ** -0.5 @ full(keys).transpose(2, 3)
        lprobs = logits.masked_fill(~allowed.unsqueeze(1), NEVER).log_softmax(3) + gates
        return lprobs.logsumexp(1).masked_fill(~allowed, -math.inf)


def of_sentence(queries: Tensor, keys: Tensor, gates: Tensor, allowed: Tensor, own: int) -> Tensor:
    """``mix`` of the first vertices of one graph: (L, L), -inf beyond them.

    Args:
        queries, keys: (H, L, d). gates: (H, L, 1). allowed: (L, L) bool. own: the number of its vertices.
    """
    parts = (part[:, :own].contiguous().unsqueeze(0) for part in (queries, keys, gates))
    rest = len(allowed) - own
    return F.pad(mix(*parts, allowed[None, :own, :own])[0], (0, rest, 0, rest), value=-math.inf)
