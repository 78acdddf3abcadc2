"""How many proposals to make and to verify: as many as pay for themselves (Huang et al. 2024, SpecDec++: a
threshold on the probability that all proposals so far are accepted).
"""

from typing import Dict, List, Optional

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts

# What a call of the decoder costs apart from its tokens, in tokens. A call of b rows and m tokens each takes as long as
# OVERHEAD + b * m. On one CPU core calls of 2 to 128 tokens fit 13 to 24 (measured with 6 layers of 512),
# on another 12 to 34 (benchmarks/bench_blockwise.py); on a GPU launching the kernels costs as much as
# some hundred tokens (not measured).
OVERHEAD: Dict[str, int] = {"cpu": 16, "cuda": 256}

BELIEF, WEIGHT = 0.7, 4.0  # a draft is right with this probability, as far as so many observations would say it


class BlockSize:
    """The number of tokens of the next block, one for all rows of a batch.

    A block of m tokens is expected to decide E(m) = 1 + sum over its drafts of the probability that the draft and all
    before it survive; the best m has the most of them for its cost. That takes a draft in just when its survival
    probability exceeds the marginal cost of the batch. Before proposals are made the survival is estimated from those
    of the same batch that were verified, so that no time goes into proposals that will not be used; after that it is
    the proposals' own confidence, the product of the heads' softmaxes, where the drafter has it. A drafter that stops
    by itself (``Drafter.stops``) is told what a further proposal must be worth instead of a number.

    The estimates start anew with every batch, so a sentence's calls do not depend on the batches before it.

    Args:
        fixed: ``--verify-block``, or None to adapt.
        device: type of the device.
        least: proposals made and verified whether they pay or not, for ``--min-block``.
    """

    def __init__(self, drafter: Drafter, fixed: Optional[int], device: str, least: int = 0):
        self.drafter, self.fixed, self.least = drafter, fixed, least
        self.overhead = OVERHEAD.get(device, OVERHEAD["cuda"])
        counts = range(drafter.most + 1)
        self.work, self.wait = [drafter.work(n) for n in counts], [drafter.wait(n) for n in counts]
        self.right = [BELIEF * WEIGHT] * drafter.most
        self.tried = [WEIGHT] * drafter.most
        self.rate = 0.0  # tokens decided for a unit of cost, at the size last thought best

    def wanted(self, rows: int, room: int) -> int:
        """How many proposals to ask for, for so many rows; no more than ``room`` can be used."""
        most = max(0, min(self.drafter.most, room))
        if self.fixed is not None:
            return min(self.fixed - 1, most)
        survival, product = [], 1.0
        for right, tried in zip(self.right[:most], self.tried):
            product *= right / tried
            survival.append(product)
        best = self.best(rows, survival, with_proposals=True)
        if self.least:
            return max(best, min(self.least, most))
        return most if best and self.drafter.stops else best

    def worth(self, rows: int) -> float:
        """The probability to survive below which one more proposal costs more than it brings, after ``wanted``."""
        if self.fixed is not None or self.least:  # then a number is wanted
            return 0.0
        more = self.overhead * self.wait[1] + rows * (1 + self.work[1])
        return self.rate * more

    def chosen(self, drafts: Drafts) -> int:
        """How many of the proposals to verify: all of them where the drafter does not say how sure it is."""
        rows, proposed = drafts.tokens.shape
        if self.fixed is not None or drafts.lprobs is None or rows == 0:
            return proposed
        best = self.best(rows, drafts.lprobs.cumsum(1).exp().mean(0).tolist(), with_proposals=False)
        return max(best, min(self.least, proposed))

    def best(self, rows: int, survival: List[float], with_proposals: bool) -> int:
        """The number of drafts with the most decided tokens for the cost."""
        expected, rates = 1.0, []
        for count, more in enumerate([0.0, *survival]):
            expected += more
            drafting, waiting = (self.work[count], self.wait[count]) if with_proposals else (0.0, 0.0)
            rates.append(expected / (self.overhead * (1 + waiting) + rows * (1 + count + drafting)))
        self.rate = max(rates)
        return rates.index(self.rate)

    def learn(self, confirmed: List[int], drafts: int) -> None:
        """What a call found: of ``drafts`` proposals a row, so many were confirmed in each."""
        for place in range(drafts):
            reached = sum(count >= place for count in confirmed)
            self.tried[place] += reached
            self.right[place] += sum(count > place for count in confirmed)
