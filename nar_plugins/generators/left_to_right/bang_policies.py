"""The decoding policies of ``bang``: the masks of a pass, and how many of their tokens are kept (Qi et al. 2021: the
first mask is the autoregressive prediction, all masks at once are the non-autoregressive one).
"""

import torch
from torch import Tensor

BLOCK = 8  # masks a pass without --bang-block


class Policy:
    """One pass at a time.

    Args:
        config: the options of the generator ``bang``.
    """

    sees_start = None  # whether the first masks see the start token; None: as the model was trained (--nar-sees-bos)

    def __init__(self, config):
        self.config = config

    def masks(self, decided: int, room: int) -> int:
        """Masks of the next pass, at least 1.

        Args:
            decided: tokens of the longest active sentence. room: tokens that the shortest may still get, ``</s>``
                included.
        """
        raise NotImplementedError

    def kept(self, lprobs: Tensor, decided: Tensor) -> Tensor:
        """Tokens to keep (b,) int64, at least 1; the loop also cuts the output at its first ``</s>``.

        Args:
            lprobs: (b, m) log-probabilities of the predicted tokens. decided: (b,) int64, tokens so far.
        """
        return torch.full_like(decided, lprobs.size(1))


class Parallel(Policy):
    """``nar``: all tokens in one pass."""

    def masks(self, decided: int, room: int) -> int:
        return room


class Block(Policy):
    """``block``: --bang-block tokens a pass, ceil(L / b) passes."""

    def masks(self, decided: int, room: int) -> int:
        return min(self.config.bang_block or BLOCK, room)


class Prefix(Policy):
    """``prefix``: --bang-prefix tokens one by one, then the rest in one pass."""

    def masks(self, decided: int, room: int) -> int:
        return 1 if decided < self.config.bang_prefix else room


class Adaptive(Block):
    """``adaptive``: the first token of a block, and those after it up to the first with a probability below
    --bang-tau.
    """

    sees_start = True  # the first mask is the next-token prediction, whatever the others are

    def kept(self, lprobs: Tensor, decided: Tensor) -> Tensor:
        confident = lprobs[:, 1:].exp() >= self.config.bang_tau
        return 1 + confident.long().cumprod(1).sum(1)


OUTPUT = ("bang_release_output", "dedup")
# the options that each policy reads; ar and verify are other generators
READS = {
    "ar": (),
    "verify": ("bang_block",),
    "nar": OUTPUT,
    "block": ("bang_block", *OUTPUT),
    "prefix": ("bang_prefix", *OUTPUT),
    "adaptive": ("bang_block", "bang_tau", *OUTPUT),
    "cascade": ("bang_block", "bang_tau", "bang_min_score", *OUTPUT),
}
ALIASES = {  # policies that are other generators: their names, and what bang's options are called there
    "ar": ("beam", {}),
    "verify": ("blockwise", {"bang_block": "verify_block"}),
}
POLICIES = {"nar": Parallel, "block": Block, "prefix": Prefix, "adaptive": Adaptive, "cascade": Parallel}
