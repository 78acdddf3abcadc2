"""The logits processing of fairseq's ``SequenceGenerator``, for several tokens at a time."""

import math
from argparse import Namespace
from typing import Optional, Sequence

import torch
from torch import Tensor

from nar_plugins.generators.base import check_min_len, longest_output
from nar_plugins.modules.best_of_rows import ban


def nan_positions(lprobs: Tensor) -> Optional[Tensor]:
    """Where log-probabilities (b, m, V) are NaN, (b, m) bool; None for nowhere, on a CPU: looking is free there."""
    nan = lprobs[..., 0].isnan()  # a softmax with one NaN is NaN everywhere
    return None if nan.device.type == "cpu" and not nan.any() else nan


class GreedyLogitsProcessor:
    """Change log-probabilities before the choice, as ``SequenceGenerator._generate`` does, in its order.

    Args:
        options: fairseq's ``GenerationConfig``.
        pad, unk, eos: indices in the target dictionary.
        unwanted: symbols that are never chosen; in fairseq's search only padding.
    """

    def __init__(self, options: Namespace, pad: int, unk: int, eos: int, unwanted: Sequence[int]):
        self.options, self.pad, self.unk, self.eos, self.unwanted = options, pad, unk, eos, unwanted

    def limit(self, width: int, models) -> int:
        """The index from which on only ``</s>`` is allowed, for a batch of sources ``width`` wide.

        Raises:
            ValueError: ``--min-len`` is above it.
        """
        limit = longest_output(self.options, width, min(model.max_decoder_positions() - 1 for model in models))
        check_min_len(self.options.min_len, limit)
        return limit

    def __call__(
        self,
        lprobs: Tensor,
        steps: Tensor,
        limit: int,
        first: int,
        last: int,
        prefix: Optional[Tensor],
        nan: Optional[Tensor],
    ) -> Tensor:
        """Process log-probabilities (b, m, V) of the tokens at indices ``steps`` (b, m), in place where possible.

        NaN becomes -inf, as in fairseq.

        Args:
            first, last: bounds of ``steps``, known to the host.
            prefix: (b, P) int64, padded, the forced beginning of every output; or None.
            nan: from ``nan_positions``.
        """
        if nan is not None:
            lprobs.masked_fill_(nan.unsqueeze(-1), -math.inf)
        ban(lprobs, self.unwanted)
        if self.options.unkpen:
            lprobs[..., self.unk] -= self.options.unkpen
        if last >= limit:
            end = lprobs[..., self.eos].clone()
            lprobs.masked_fill_((steps >= limit).unsqueeze(-1), -math.inf)
            lprobs[..., self.eos] = end
        inside = None
        if prefix is not None and first < prefix.size(1):
            inside = (steps < prefix.size(1)) & (steps < limit)
            given = prefix.gather(1, steps.clamp(max=prefix.size(1) - 1)).unsqueeze(-1)
            only = torch.full_like(lprobs, -math.inf).scatter(2, given, lprobs.gather(2, given))
            lprobs = torch.where(inside.unsqueeze(-1) & given.ne(self.pad), only, lprobs)
        if first < self.options.min_len:
            early = steps < self.options.min_len
            early = early if inside is None else early & ~inside
            lprobs[..., self.eos] = lprobs[..., self.eos].masked_fill(early, -math.inf)
        return lprobs
