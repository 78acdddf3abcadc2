"""How many masks a pass of a ``bang`` decoder asks, and how many of their tokens it keeps (Qi et al. 2021:
the first mask is the autoregressive prediction, all masks at once the non-autoregressive one).
"""

import torch
from torch import Tensor

BLOCK = 8  # masks a pass unless --bang-block says otherwise


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
            decided: tokens that the longest live row has. room: those that the shortest may still get, ``</s>``
                included.
        """
        raise NotImplementedError

    def kept(self, lprobs: Tensor, decided: Tensor) -> Tensor:
        """Tokens to keep (b,) int64, at least 1; the output is cut at its first ``</s>`` besides.

        Args:
            lprobs: (b, m) log-probabilities of the tokens that the masks predict. decided: (b,) int64, tokens so far.
        """
        return torch.full_like(decided, lprobs.size(1))


class Parallel(Policy):
    """``nar``: everything in one pass."""

    def masks(self, decided: int, room: int) -> int:
        return room


class Block(Policy):
    """``block``: --bang-block tokens a pass, ceil(L / b) passes."""

    def masks(self, decided: int, room: int) -> int:
        return min(self.config.bang_block or BLOCK, room)


class Prefix(Policy):
    """``prefix``: --bang-prefix tokens one by one, then the rest at once."""

    def masks(self, decided: int, room: int) -> int:
        return 1 if decided < self.config.bang_prefix else room


class Adaptive(Block):
    """``adaptive``: of a block the longest prefix whose tokens are all at least --bang-tau probable; the first in any
    case.
    """

    sees_start = True  # the first mask is the next-token prediction, whatever the others are

    def kept(self, lprobs: Tensor, decided: Tensor) -> Tensor:
        sure = lprobs[:, 1:].exp() >= self.config.bang_tau
        return 1 + sure.long().cumprod(1).sum(1)


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
