"""How important every attention head and feed-forward unit is: the first-order Taylor expansion of the loss.

A unit's output h stands behind a gate of value 1. To close the gate changes the loss L by about -h dL/dh. Its
importance is the sum of |h dL/dh| over all positions where it is computed, divided by the number of targets: nats a
target. Michel et al. 2019 (section 4.1) put one gate on a head for a whole sentence, Molchanov et al. 2019 (section 3)
one on a unit for a whole batch; a gate at every position makes the importance independent of the batches, and no
changes of opposite sign cancel.
"""

from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple

import torch
import torch.nn as nn
from fairseq.modules import MultiheadAttention
from torch import Tensor

from nar_plugins.modules.pruned import SIDES, Part, layers_of, parts_of


class Key(NamedTuple):
    """A part of a model."""

    side: str
    layer: int
    part: str


def parts_of_model(model: nn.Module) -> Dict[Key, Part]:
    """All parts whose units can be removed."""
    return {
        Key(side, number, name): part
        for side in SIDES
        for number, layer in enumerate(layers_of(getattr(model, side)))
        for name, part in parts_of(layer).items()
    }


@contextmanager
def recorded(model: nn.Module) -> Iterator[Dict[Key, Tensor]]:
    """Within it every backward pass adds to the importance of every unit: (units,) float64 for every part, nats."""
    for attention in model.modules():
        if isinstance(attention, MultiheadAttention):  # else fairseq's own calls PyTorch's function with its weights
            attention.skip_embed_dim_check = True
    parts = parts_of_model(model)
    sums = {key: torch.zeros(part.units, dtype=torch.float64) for key, part in parts.items()}
    handles = [
        part.output.register_forward_pre_hook(lambda module, inputs, key=key: watch(inputs[0], sums[key]))
        for key, part in parts.items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def watch(outputs: Tensor, sums: Tensor) -> None:
    """Add |h dL/dh| of outputs (..., units * width) to ``sums`` (units,), once their gradient is known."""
    if not outputs.requires_grad:
        return

    def add(gradient: Tensor) -> None:
        effects = (outputs.detach().double() * gradient.double()).unflatten(-1, (len(sums), -1)).sum(-1)
        sums.add_(effects.flatten(0, -2).abs().sum(0).to(sums.device))

    outputs.register_hook(add)
