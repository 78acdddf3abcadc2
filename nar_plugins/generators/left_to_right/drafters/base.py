"""The interface between the blockwise loop and the drafters."""

from typing import Any, Dict, List, NamedTuple, Optional

from torch import Tensor

from nar_plugins.modules.best_of_rows import max_of_rows
from nar_plugins.modules.precision import full

MAX_DRAFT_TOKENS = 15  # of the drafters that have no limit of their own

# The fixed cost of a draft or some, of a decoder layer and of the rest of a call, in weights that are read in the same
# time: measured on one CPU core with 2 to 6 layers of 128 to 512 (benchmarks/bench_blockwise.py), not on a GPU.
DRAFT, LAYER, CALL = 0.6e6, 0.7e6, 1.1e6


class VerifyResult(NamedTuple):
    """The outcome of a verifying call for b active sentences of a batch of B."""

    sentences: Tensor  # (b,) int64, their indices in the batch
    tokens: Tensor  # (B, W) int64: the output of all sentences so far
    lengths: Tensor  # (b,) int64: tokens decided
    features: List[Tensor]  # every model's (b, D) at the last decided position
    greedy: Tensor  # (b, m) int64: the verifier's choice after every token that was fed
    accepted: Tensor  # (b,) int64: drafts accepted

    def select(self, kept: Tensor) -> "VerifyResult":
        """The result for some of the b sentences: (n,) int64."""
        return VerifyResult(
            self.sentences[kept],
            self.tokens,
            self.lengths[kept],
            [features[kept] for features in self.features],
            self.greedy[kept],
            self.accepted[kept],
        )


class Drafts(NamedTuple):
    """Proposals for the next tokens."""

    tokens: Tensor  # (b, n) int64
    lprobs: Optional[Tensor] = None  # (b, n) log-probability of each, given those before it; None: unknown


def best_drafts(logits: Tensor) -> Drafts:
    """The most probable tokens (...) of logits (..., V), with their log-probabilities.

    On a CPU core the full log-softmax takes a third of the time of ``logsumexp`` for one sentence, and half for eight.
    """
    lprobs, tokens = max_of_rows(full(logits).log_softmax(-1))
    return Drafts(tokens, lprobs)


def token_weights(decoder) -> int:
    """The weights that one of fairseq's decoders multiplies a token's states by."""
    return (
        sum(parameter.numel() for parameter in decoder.layers.parameters()) + decoder.output_projection.weight.numel()
    )


def fixed_weights(decoder) -> float:
    """The fixed cost of a decoder call, in weights that are read in the same time."""
    return CALL + LAYER * len(decoder.layers) + token_weights(decoder)


class Drafter:
    """The interface of all drafters: ``begin`` once a batch, ``set_budget`` before and ``draft`` after each call."""

    max_draft_tokens = MAX_DRAFT_TOKENS
    adaptive_length = False  # whether it stops by itself, at the ``min_survival`` of ``set_budget``
    probe_tokens, probe_calls = 1, 1  # drafts a call, and calls, that tell whether its drafts are accepted

    def check(self, sample: Dict) -> None:
        """Called for every batch.

        Raises:
            ValueError: nothing can be drafted for one of its sentences.
        """

    def begin(self, sample: Dict, encoded: List[Dict]) -> Any:
        """The ``state`` that ``draft`` needs, for all B sentences; called before the first drafts, if there are any.

        Args:
            sample: fairseq's batch. encoded: every model's encoder output.
        """
        return None

    def set_budget(self, count: int, min_survival: float) -> None:
        """Called before a call of the verifier.

        Args:
            count: the number of drafts that will be asked for after the call.
            min_survival: the mean probability over the sentences that a draft and all before it are accepted, below
                which a further draft costs more than it brings.
        """

    def draft(self, verified: VerifyResult, count: int, state: Any) -> Drafts:
        """Drafts for every active sentence: ``count`` of them, 1 to ``max_draft_tokens``, or fewer with
        ``adaptive_length``.
        """
        raise NotImplementedError

    def verify_cost(self, count: int) -> float:
        """The cost of verifying ``count`` drafts of one sentence, in tokens of the verifier's decoder."""
        return 1.0 + count

    def cost_per_row(self, count: int) -> float:
        """The cost of ``count`` drafts for one sentence; 1 is one token in the verifier's decoder."""
        return 0.0

    def fixed_cost(self, count: int) -> float:
        """The cost of ``count`` drafts for any number of sentences; 1 is the fixed cost of a call of the verifier's
        decoder.
        """
        return 0.0

    def begin_cost_per_token(self) -> float:
        """The cost of ``begin`` for one token of a source; 1 is one token in the verifier's decoder."""
        return 0.0

    def begin_fixed_cost(self) -> float:
        """The cost of ``begin`` for any batch; 1 is the fixed cost of a call of the verifier's decoder."""
        return 0.0
