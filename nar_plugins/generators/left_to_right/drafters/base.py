"""The interface between the blockwise loop and what drafts for it."""

from typing import Any, Dict, List, NamedTuple, Optional

from torch import Tensor

from nar_plugins.modules.precision import full

MOST = 15  # proposals a call of the drafters that could go on for ever


class Verified(NamedTuple):
    """What a call of the decoder decided about b rows, among the B sentences of the batch."""

    rows: Tensor  # (b,) int64: which sentence each is
    tokens: Tensor  # (B, W) int64: the tokens of all sentences so far
    lengths: Tensor  # (b,) int64: how many of them are decided
    features: List[Tensor]  # every model's (b, D) at the last decided position
    greedy: Tensor  # (b, m) int64: the verifier's choice after every token of the block
    accepted: Tensor  # (b,) int64: how many of the block's drafts it confirmed

    def select(self, rows: Tensor) -> "Verified":
        """These rows (n,) of the b only."""
        features = [one[rows] for one in self.features]
        return Verified(
            self.rows[rows], self.tokens, self.lengths[rows], features, self.greedy[rows], self.accepted[rows]
        )


class Drafts(NamedTuple):
    """Proposals for the next tokens."""

    tokens: Tensor  # (b, n) int64
    lprobs: Optional[Tensor] = None  # (b, n) log-probability that each is right if those before it are; None: unknown


def best_of(logits: Tensor) -> Drafts:
    """The best tokens (...) of logits (..., V), and their log-probabilities.

    On a CPU core a log-softmax of all takes a third of the time of ``logsumexp`` for one row, and half for eight.
    """
    lprobs, tokens = full(logits).log_softmax(-1).max(-1)
    return Drafts(tokens, lprobs)


class Drafter:
    """The interface: ``begin`` once a batch, ``ahead`` before and ``draft`` after each call."""

    most = MOST  # the most proposals that it can make
    stops = False  # whether it heeds ``ahead``'s ``worth``

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        """What ``draft`` needs to know of fairseq's batch and of what every model's encoder made of it: its ``state``,
        for all B sentences."""
        return None

    def ahead(self, count: int, worth: float) -> None:
        """Told before a call how many proposals will be wanted after it, and that none pays whose probability to
        survive, the mean over the rows, is below ``worth``."""

    def draft(self, verified: Verified, count: int, state: Any) -> Drafts:
        """Proposals for every row: ``count``, at least 1 and at most ``most``, or the first of them that are worth
        it.
        """
        raise NotImplementedError

    def work(self, count: int) -> float:
        """What ``count`` proposals for a row cost, in tokens of the verifier's decoder."""
        return 0.0

    def wait(self, count: int) -> float:
        """What ``count`` proposals cost besides, however many rows there are; what a call of the verifier's decoder
        costs so is 1.
        """
        return 0.0
