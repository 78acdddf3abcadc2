"""How many tokens to draft and to verify (Huang et al. 2024, SpecDec++: a threshold on the probability that all drafts
so far are accepted).
"""

from typing import Dict, List, Optional

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts

# The fixed cost of a decoder call, in tokens. A call with m tokens for each of b sentences takes as long as
# OVERHEAD + b * m. On one CPU core calls of 2 to 128 tokens fit 13 to 24 (measured with 6 layers of 512),
# on another 12 to 34 (benchmarks/bench_blockwise.py); on a GPU launching the kernels costs as much as
# some hundred tokens (not measured).
OVERHEAD: Dict[str, int] = {"cpu": 16, "cuda": 256}

PRIOR, PRIOR_WEIGHT = 0.7, 4.0  # a draft's probability to be accepted, and the number of observations that it counts as


class DraftLengthPolicy:
    """The number of drafts in the next call, one number for all active sentences of a batch.

    A draft survives when it and all before it are accepted. With n drafts a call is expected to decide
    E(n) = 1 + the sum of their survival probabilities. The best n has the most expected tokens for its cost: a draft is
    included exactly when its survival probability exceeds its marginal cost.

    Before drafts are made, survival is estimated from the acceptance of earlier drafts of the same batch, so that no
    time goes into drafts that will not be used. Afterwards it is the drafts' own probability, where the drafter gives
    it. A drafter with ``adaptive_length`` gets a threshold, ``min_survival``, instead of a number.

    The estimates start anew with every batch, so a sentence's calls do not depend on the batches before it.

    Args:
        fixed: ``--verify-block``, or None to adapt.
        device: type of the device.
        min_draft_tokens: drafts that are made and verified whatever they cost, for ``--min-block``.
    """

    def __init__(self, drafter: Drafter, fixed: Optional[int], device: str, min_draft_tokens: int = 0):
        self.drafter, self.fixed, self.min_draft_tokens = drafter, fixed, min_draft_tokens
        self.overhead = OVERHEAD.get(device, OVERHEAD["cuda"])
        counts = range(drafter.max_draft_tokens + 1)
        self.cost_per_row = [drafter.cost_per_row(n) for n in counts]
        self.fixed_cost = [drafter.fixed_cost(n) for n in counts]
        self.accepted = [PRIOR * PRIOR_WEIGHT] * drafter.max_draft_tokens  # by position in the block
        self.trials = [PRIOR_WEIGHT] * drafter.max_draft_tokens
        self.rate = 0.0  # expected tokens for a unit of cost, at the best length so far

    def budget(self, sentences: int, room: int) -> int:
        """The number of drafts to ask for.

        Args:
            sentences: active ones. room: tokens that can still be used.
        """
        limit = max(0, min(self.drafter.max_draft_tokens, room))
        if self.fixed is not None:
            return min(self.fixed - 1, limit)
        survival, product = [], 1.0
        for accepted, trials in zip(self.accepted[:limit], self.trials):
            product *= accepted / trials
            survival.append(product)
        best = self.best_length(sentences, survival, with_drafting=True)
        if self.min_draft_tokens:
            return max(best, min(self.min_draft_tokens, limit))
        return limit if best and self.drafter.adaptive_length else best

    def min_survival(self, sentences: int) -> float:
        """The survival probability below which one more draft costs more than it brings; call ``budget`` first."""
        if self.fixed is not None or self.min_draft_tokens:  # the number of drafts is given
            return 0.0
        marginal_cost = self.overhead * self.fixed_cost[1] + sentences * (1 + self.cost_per_row[1])
        return self.rate * marginal_cost

    def verify_length(self, drafts: Drafts) -> int:
        """How many of the drafts to verify: all where the drafter gives no probabilities."""
        sentences, drafted = drafts.tokens.shape
        if self.fixed is not None or drafts.lprobs is None or sentences == 0:
            return drafted
        survival = drafts.lprobs.cumsum(1).exp().mean(0).tolist()
        return max(self.best_length(sentences, survival, with_drafting=False), min(self.min_draft_tokens, drafted))

    def best_length(self, sentences: int, survival: List[float], with_drafting: bool) -> int:
        """The number of drafts with the most expected tokens for the cost.

        Args:
            survival: of each draft. with_drafting: whether the cost of making them counts.
        """
        expected, rates = 1.0, []
        for count, probability in enumerate([0.0, *survival]):
            expected += probability
            per_row, fixed = (self.cost_per_row[count], self.fixed_cost[count]) if with_drafting else (0.0, 0.0)
            rates.append(expected / (self.overhead * (1 + fixed) + sentences * (1 + count + per_row)))
        self.rate = max(rates)
        return rates.index(self.rate)

    def update(self, accepted: List[int], drafts: int) -> None:
        """Count a call: of ``drafts`` drafts a sentence, how many were accepted in each."""
        for position in range(drafts):
            self.trials[position] += sum(count >= position for count in accepted)
            self.accepted[position] += sum(count > position for count in accepted)
