"""How many tokens to draft and to verify (Huang et al. 2024, SpecDec++: a threshold on the probability that all drafts
so far are accepted).
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts

# The fixed cost of a decoder call, in tokens. A call with m tokens for each of b sentences takes as long as
# OVERHEAD + b * m. On one CPU core calls of 2 to 128 tokens fit 13 to 24 (measured with 6 layers of 512),
# on another 12 to 34 (benchmarks/bench_blockwise.py); on a GPU launching the kernels costs as much as
# some hundred tokens (not measured).
OVERHEAD: Dict[str, int] = {"cpu": 16, "cuda": 256}

# The cost of verifying anything at all, in tokens: a call with two tokens takes longer than one with one by more than a
# token (on that CPU core 1.2 to 1.4 times as long, with eight 1.5 to 1.8 times); not measured on a GPU.
BLOCK: Dict[str, float] = {"cpu": 2.0, "cuda": 0.0}

PRIOR = 0.7  # a draft's probability to be accepted, before any was verified
PRIOR_WEIGHT = 4.0  # the observations that it counts as in a run, and in a batch those in earlier batches, at most
WINDOW = 64.0  # observations that a run remembers; older ones fade
PROBE_SHARE = 0.02  # of the time of the calls without drafts, that probes may take
MAX_PATIENCE = 64  # probes that fail become this many times as rare, at most
NOTHING = (0, 0, 0, 0.0)  # no result of ``budget`` yet: there are no sentences


class Costs(NamedTuple):
    """The costs of a call by its number of drafts, in tokens: fixed ones, and those of every sentence."""

    overhead: int
    verifying: Tuple[List[float], List[float]]
    drafting: Tuple[List[float], List[float]]  # and verifying


def draft_costs(drafter: Drafter, device: str) -> Costs:
    """The costs of a drafter's drafts on a device of this type."""
    overhead, block = (costs.get(device, costs["cuda"]) for costs in (OVERHEAD, BLOCK))
    counts = range(drafter.max_draft_tokens + 1)
    call = [overhead + (block if n else 0.0) for n in counts]
    verifying = [drafter.verify_cost(n) for n in counts]
    drafting = [cost + overhead * drafter.fixed_cost(n) for n, cost in zip(counts, call)]
    per_row = [cost + drafter.cost_per_row(n) for n, cost in zip(counts, verifying)]
    return Costs(overhead, (call, verifying), (drafting, per_row))


class AcceptanceHistory:
    """What the batches of a run tell the next one: how often drafts were accepted, and when to probe again.

    Attributes:
        accepted, trials: by position in the block.
        idle: the cost of the calls since the last probe, in which drafting did not pay; None: before the first.
        patience: it doubles with every probe, until most of the first drafts are accepted or drafting pays.
    """

    def __init__(self):
        self.accepted: List[float] = []
        self.trials: List[float] = []
        self.idle: Optional[float] = None
        self.patience = 1
        self.costs: Optional[Tuple[Drafter, str, Costs]] = None

    def costs_of(self, drafter: Drafter, device: str) -> Costs:
        """The costs of a drafter's drafts; computed once."""
        if self.costs is None or self.costs[:2] != (drafter, device):
            self.costs = drafter, device, draft_costs(drafter, device)
        return self.costs[2]

    def extend(self, positions: int) -> None:
        """Know this many positions; of the new ones little is known."""
        missing = positions - len(self.trials)
        self.accepted += [PRIOR * PRIOR_WEIGHT] * missing
        self.trials += [PRIOR_WEIGHT] * missing

    def count(self, position: int, trials: float, accepted: float) -> None:
        self.trials[position] += trials
        self.accepted[position] += accepted
        faded = min(1.0, WINDOW / self.trials[position])
        self.trials[position] *= faded
        self.accepted[position] *= faded


class DraftLengthPolicy:
    """The number of drafts in the next call, one number for all active sentences of a batch.

    A draft survives when it and all before it are accepted. With n drafts a call is expected to decide
    E(n) = 1 + the sum of their survival probabilities. The best n has the most expected tokens for its cost: a draft is
    included exactly when its survival probability exceeds its marginal cost.

    Before drafts are made, survival is estimated from the acceptance of earlier drafts, so that no time goes into
    drafts that will not be used. Afterwards it is the drafts' own probability, where the drafter gives it. A drafter
    with ``adaptive_length`` gets a threshold, ``min_survival``, instead of a number. Drafts that are made and not
    verified count by their own probability.

    Where no draft pays, some are made all the same now and then, a probe. Probes may take ``PROBE_SHARE`` of the time
    of the calls before them, and half as much after each that fails; so drafts that are always wrong cost little.

    Args:
        fixed: ``--verify-block``, or None to adapt.
        device: type of the device.
        min_draft_tokens: drafts that are made and verified whatever they cost, for ``--min-block``.
        history: of the batches before, which this one extends. None: nothing is known, and nothing is told. The drafts
            do not change exact decoding's output; any other kind's they would make depend on the batches before.
        shape: sentences and width of the source, for the cost of ``Drafter.begin``.
    """

    def __init__(
        self,
        drafter: Drafter,
        fixed: Optional[int],
        device: str,
        min_draft_tokens: int = 0,
        history: Optional[AcceptanceHistory] = None,
        shape: Tuple[int, int] = (1, 1),
    ):
        self.drafter, self.fixed, self.min_draft_tokens = drafter, fixed, min_draft_tokens
        self.history = AcceptanceHistory() if history is None else history
        self.overhead, self.costs, self.costs_with_drafting = self.history.costs_of(drafter, device)
        sentences, self.width = shape
        self.begin_cost = self.overhead * drafter.begin_fixed_cost()
        self.begin_cost += sentences * self.width * drafter.begin_cost_per_token()
        self.history.extend(drafter.max_draft_tokens)
        # the history counts as few observations, so that a batch that differs from those before is soon noticed
        self.trials = [min(PRIOR_WEIGHT, trials) for trials in self.history.trials]
        known = zip(self.history.accepted, self.history.trials, self.trials)
        self.accepted = [accepted / trials * weight for accepted, trials, weight in known]
        self.rate = 0.0  # expected tokens for a unit of cost, at the best length so far
        self.probing = 0  # calls that the present probe still takes
        self.latest = NOTHING  # the sentences and the limit of ``budget``, and its result, until something is counted

    def budget(self, sentences: int, room: int) -> int:
        """The number of drafts to ask for; called once before every call.

        Args:
            sentences: active ones. room: tokens that can still be used.
        """
        limit = max(0, min(self.drafter.max_draft_tokens, room))
        if self.fixed is not None:
            return min(self.fixed - 1, limit)
        if self.latest[:2] != (sentences, limit):
            survival, product = [], 1.0
            for accepted, trials in zip(self.accepted[:limit], self.trials):
                product *= accepted / trials
                survival.append(product)
            best = self.best_length(sentences, survival, with_drafting=True)
            self.latest = sentences, limit, best, self.rate
        _, _, best, self.rate = self.latest
        if self.min_draft_tokens:
            return max(best, min(self.min_draft_tokens, limit))
        if not best:
            return self.probe(sentences, limit)
        self.history.patience, self.probing = 1, 0
        return limit if self.drafter.adaptive_length else best

    def probe(self, sentences: int, limit: int) -> int:
        """Drafts to make although they do not pay by what is known."""
        count = min(self.drafter.probe_tokens, limit)
        if self.probing:
            self.probing -= 1
            return count
        history, base = self.history, self.call_cost(sentences, 0)
        if history.idle is None:  # as if a batch had passed, with a call for every token of the source
            history.idle = self.width * base
        cost = self.begin_cost + (self.call_cost(sentences, count) - base) * self.drafter.probe_calls
        if not count or PROBE_SHARE * history.idle < cost * history.patience:
            history.idle += base
            return 0
        history.idle, history.patience = 0.0, min(2 * history.patience, MAX_PATIENCE)
        self.probing = self.drafter.probe_calls - 1
        return count

    def begun(self) -> None:
        """The drafter's ``begin`` was called: from now on it costs nothing."""
        self.begin_cost, self.latest = 0.0, NOTHING

    def min_survival(self, sentences: int) -> float:
        """The survival probability below which one more draft costs more than it brings; call ``budget`` first."""
        if self.fixed is not None or self.min_draft_tokens:  # the number of drafts is given
            return 0.0
        limit = min(2, self.drafter.max_draft_tokens)  # the second draft: the first has a cost of its own
        return self.rate * (self.call_cost(sentences, limit) - self.call_cost(sentences, limit - 1))

    def verify_length(self, drafts: Drafts) -> int:
        """How many of the drafts to verify: all where the drafter gives no probabilities. The others are counted by
        their own probability.
        """
        sentences, drafted = drafts.tokens.shape
        if self.fixed is not None or drafts.lprobs is None or sentences == 0:
            return drafted
        survival = drafts.lprobs.cumsum(1).exp().mean(0).tolist()
        length = max(self.best_length(sentences, survival, with_drafting=False), min(self.min_draft_tokens, drafted))
        for position in range(length, drafted):
            before = survival[position - 1] if position else 1.0
            self.count(position, sentences * before, sentences * survival[position])
        return length

    def best_length(self, sentences: int, survival: List[float], with_drafting: bool) -> int:
        """The number of drafts with the most expected tokens for the cost.

        Args:
            survival: of each draft. with_drafting: whether the cost of making them counts.
        """
        fixed, per_row = self.costs_with_drafting if with_drafting else self.costs
        begin = self.begin_cost / self.width if with_drafting else 0.0  # spread over the calls
        expected, best = 1.0, 0
        self.rate = 1.0 / (fixed[0] + sentences * per_row[0])
        for count, probability in enumerate(survival, 1):
            expected += probability
            rate = expected / (fixed[count] + sentences * per_row[count] + begin)
            if rate > self.rate:
                self.rate, best = rate, count
        return best

    def call_cost(self, sentences: int, count: int) -> float:
        """The cost of a call with ``count`` drafts, made and verified, in tokens."""
        fixed, per_row = self.costs_with_drafting
        return fixed[count] + sentences * per_row[count]

    def update(self, accepted: List[int], drafts: int) -> None:
        """Count a call: of ``drafts`` drafts a sentence, how many were accepted in each."""
        for position in range(drafts):
            tried = sum(count >= position for count in accepted)
            right = sum(count > position for count in accepted)
            self.count(position, tried, right)
            if position == 0 and tried and 2 * right >= tried:
                self.history.patience = 1  # drafts that were given up have become right, or nearly so

    def count(self, position: int, trials: float, accepted: float) -> None:
        self.latest = NOTHING
        self.trials[position] += trials
        self.accepted[position] += accepted
        self.history.count(position, trials, accepted)
