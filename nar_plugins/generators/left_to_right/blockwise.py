"""Blockwise parallel decoding (Stern et al. 2018, section 4): exactly the greedy output, several tokens a call."""

import logging
import math
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from torch import Tensor
from torch.nn import Module

from nar_plugins.generators.hypothesis import greedy_hypothesis
from nar_plugins.generators.left_to_right.base import Batch, Decision, LeftToRightGenerator, LeftToRightStatistics
from nar_plugins.generators.left_to_right.drafters import choose_drafter
from nar_plugins.generators.left_to_right.drafters.base import Drafts, VerifyResult
from nar_plugins.generators.left_to_right.drafters.heads import HeadsDrafter
from nar_plugins.generators.left_to_right.drafters.length_policy import AcceptanceHistory, DraftLengthPolicy
from nar_plugins.generators.left_to_right.logits_processor import nan_positions
from nar_plugins.generators.option_values import old_name, option
from nar_plugins.generators.options import MODELS, refuse, refuse_options
from nar_plugins.generators.registry import DecodingConfig, register_generator
from nar_plugins.modules.best_of_rows import first_of_two
from nar_plugins.modules.block_decoder import block_decoder

logger = logging.getLogger(__name__)

TOP = 2  # the default of --accept-top; the smallest in the paper


@dataclass
class BlockwiseConfig(DecodingConfig):
    drafter: ChoiceEnum(["auto", "heads", "jacobi", "copy", "model"]) = option(
        "auto",
        "source of the drafts: the checkpoint's heads; the verifier's own predictions after a rejected draft "
        "(jacobi); the source sentence (copy); the translation by --drafter-path (model); auto: model with "
        "--drafter-path, else heads where there are some, else jacobi",
    )
    drafter_path: Optional[str] = option(None, "a cmlm, nat or dag checkpoint whose translations are the drafts")
    drafter_iterations: int = option(1, "passes of a cmlm drafter; more passes draft better and take longer")
    verify_block: Optional[int] = option(
        None, "tokens verified a call; 1: no drafts (unset: chosen by the drafts' probabilities and the batch size)"
    )
    draft_vocab_size: Optional[int] = option(
        None,
        "the heads propose only the first N symbols of the dictionary, which fairseq sorts by frequency: the same "
        "output, cheaper drafts, and no rare tokens among them (unset: all)",
    )
    draft_words: Optional[int] = old_name("draft_vocab_size", None)
    accept: ChoiceEnum(["exact", "top"]) = option(
        "exact", "exact: a draft must be the greedy token; top: one of the best tokens, which changes the output"
    )
    accept_top: Optional[int] = option(None, f"--accept top: a draft must be among this many best tokens ({TOP})")
    accept_gap: Optional[float] = option(
        None, "--accept top: a draft's log-probability must be at most this far below the best (no bound)"
    )
    min_block: int = option(
        1,
        "accept at least this many tokens a call after the first, unverified if need be, up to a drafted </s> that "
        "is not the greedy token; above 1 it changes the output",
    )


@dataclass
class Drafting:
    """The drafting state of a batch."""

    policy: DraftLengthPolicy
    begin: Callable[[], Any]  # ``Drafter.begin`` for this batch
    drafter_state: Any = None  # what it returned
    begun: bool = False
    budget: int = 0  # drafts after the next call
    verified: Optional[VerifyResult] = None  # of the last call, for the active sentences


@dataclass
class BlockwiseStatistics(LeftToRightStatistics):
    first_call_tokens: int = 0
    accepted_lengths: Counter = field(default_factory=Counter)  # tokens decided in a call -> calls after the first

    def add(self, accepted: List[int]) -> None:
        super().add(accepted)
        self.first_call_tokens += accepted[0]
        self.accepted_lengths.update(accepted[1:])

    def line(self) -> Optional[str]:
        if not self.sentences:
            return None
        calls = sum(self.accepted_lengths.values())
        blocks = f"{(self.tokens - self.first_call_tokens) / calls:.2f}" if calls else "none"
        histogram = " ".join(f"{size}:{count}" for size, count in sorted(self.accepted_lengths.items()))
        return (
            f"blockwise: {self.sentences} sentences, {self.decoder_calls} decoder calls; "
            f"{self.tokens / self.sentence_calls:.2f} tokens a call of a sentence; "
            f"mean accepted block {blocks} after the first call (tokens:calls {histogram})"
        )


@register_generator("blockwise", dataclass=BlockwiseConfig)
class BlockwiseGenerator(LeftToRightGenerator):
    """Greedy search that verifies a block of drafts in every decoder call; one model or an ensemble.

    Before a call n tokens of a sentence are decided, and the cache holds the inputs before token n. The call feeds
    token n and the drafts after it. A draft is accepted where it is the greedy token after the inputs before it. The
    greedy token after the last accepted draft is decided too, so a call decides 1 to K tokens. A token differs from
    greedy search's only where rounding decides between the two best.
    """

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None, drafter=None):
        refuse_options("blockwise", options, config, rescorer)
        if options.beam == 5:
            logger.info("blockwise is greedy: --beam is not used")
        super().__init__(models, dictionary, config, options, mask)
        self.top = config.accept_top or TOP
        self.gap = math.inf if config.accept_gap is None else config.accept_gap
        self.decoders = [block_decoder(model) for model in self.models]
        self.exact = str(config.accept) == "exact" and config.min_block == 1
        self.drafter = choose_drafter(config, self.models, self.decoders, dictionary, mask, drafter, rough=self.exact)
        full_context = any(getattr(model, "full_context_alignment", False) for model in self.models)
        facts = dict(full_context=full_context, heads=isinstance(self.drafter, HeadsDrafter), top=self.top)
        facts.update(max_block=self.drafter.max_draft_tokens + 1, symbols=len(dictionary))
        refuse(MODELS, "blockwise", options, config, **facts)
        if not self.exact:
            logger.warning(
                "blockwise accepts what greedy search would not say: the output is not that of greedy search"
            )
        self.statistics = BlockwiseStatistics()
        self.history = AcceptanceHistory()

    def reads_weights_of(self, model) -> List[Module]:
        """The heads and the vocabulary projection: drafters take parts of them."""
        decoder = block_decoder(model).decoder
        heads = getattr(decoder, "proposal_heads", None)
        return [] if heads is None else [heads, decoder.output_projection]

    def max_tokens(self, limit: int) -> int:
        return self.drafter.max_draft_tokens + 1

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        self.drafter.check(sample)
        source = sample["net_input"]["src_tokens"]
        fixed, min_drafts = self.config.verify_block, self.config.min_block - 1
        history = self.history if self.exact else None  # other outputs depend on the draft lengths
        policy = DraftLengthPolicy(self.drafter, fixed, source.device.type, min_drafts, history, tuple(source.shape))
        drafting = Drafting(policy, lambda: self.drafter.begin(sample, encoded))
        return self.decode(drafting, source, encoded, prefix)

    def propose(self, batch: Batch) -> Drafts:
        """Make the next drafts, and set the budget of those after the call.

        Drafting comes after the finished sentences have left, so that nothing is drafted for them (with one sentence,
        that saves one call in six). The first drafts are the prefix, which cannot be rejected.
        """
        state = batch.state
        if state.verified is None and batch.prefix is not None:
            prefix = batch.prefix[:, : batch.limit]  # where it is padded, no draft is accepted
            drafts = Drafts(prefix.masked_fill(prefix.eq(self.pad), self.unk))
        elif state.verified is None or not state.budget:
            drafts = Drafts(batch.pending[:, :0])
        else:
            if not state.begun:
                state.drafter_state, state.begun = state.begin(), True
                state.policy.begun()
            drafts = self.drafter.draft(state.verified, state.budget, state.drafter_state)
            drafts = Drafts(drafts.tokens[:, : state.policy.verify_length(drafts)])
        state.budget = state.policy.budget(len(batch.active), batch.limit - batch.min_length - 1)
        self.drafter.set_budget(state.budget, state.policy.min_survival(len(batch.active)))
        return drafts

    def decide(self, batch: Batch, proposal: Drafts) -> Decision:
        """Verify the drafts in one call of the decoders."""
        drafts = proposal.tokens
        fed = torch.cat([batch.pending, drafts], 1) if drafts.size(1) else batch.pending
        self.statistics.mask_positions += fed.numel() * self.decoders[0].masks
        steps = batch.lengths.unsqueeze(1) + torch.arange(fed.size(1), device=fed.device)
        lprobs, features, attention = self.call(batch, fed)
        nan = nan_positions(lprobs)
        last = batch.max_length + fed.size(1) - 1
        lprobs = self.processor(lprobs, steps, batch.limit, batch.min_length, last, batch.prefix, nan)
        best, greedy = first_of_two(lprobs)
        forced = None
        if batch.state.verified is None and batch.prefix is not None:  # the drafts are the prefix
            forced = batch.prefix[:, : drafts.size(1)].ne(self.pad)
        accepted = self.accepted_drafts(lprobs, greedy, drafts, forced)
        end = accepted.unsqueeze(1)
        tokens, scores = greedy, best  # an accepted draft is the greedy token
        if not self.exact:
            tokens = torch.cat([drafts, batch.pending], 1).scatter(1, end, greedy.gather(1, end))
            scores = lprobs.gather(2, tokens.unsqueeze(-1)).squeeze(-1)
        counts = accepted + 1
        at_end = [states.gather(1, end.unsqueeze(-1).expand(-1, 1, states.size(-1))).squeeze(1) for states in features]
        lengths = batch.lengths + counts
        if forced is not None:  # what was chosen after padding is no draft
            beyond = torch.arange(greedy.size(1), device=greedy.device) > end
            greedy = torch.where(beyond, greedy.gather(1, end), greedy)
        batch.state.verified = VerifyResult(batch.active, batch.tokens, lengths, at_end, greedy, accepted)
        return Decision(steps, tokens, scores, counts, nan, attention)

    def call(self, batch: Batch, fed: Tensor) -> tuple:
        """Feed tokens (b, m): the ensemble's log-probabilities (b, m, V) of the token after each, every model's
        features (b, m, D), and for ``--print-alignment`` the attention (b, m, S)."""
        aligned = batch.attention is not None
        outputs = [
            decoder(fed, batch.cached, batch.min_length, batch.max_length, batch.limit, cache, aligned)
            for decoder, cache in zip(self.decoders, batch.caches)
        ]
        features, attentions = zip(*outputs)
        lprobs = self.mean_lprobs([decoder.logits(states) for decoder, states in zip(self.decoders, features)])
        return lprobs, features, torch.stack(attentions).mean(0) if aligned else None

    def accepted_drafts(self, lprobs: Tensor, greedy: Tensor, drafts: Tensor, forced: Optional[Tensor]) -> Tensor:
        """The number of drafts (b, n) that are accepted, from the first on: (b,) int64. ``</s>`` is accepted only where
        it is the greedy token.

        Args:
            forced: (b, n) bool, where the drafts are a prefix's tokens and not its padding; None: they are no prefix.
        """
        if not drafts.size(1):
            return torch.zeros_like(greedy[:, 0])
        exact = drafts.eq(greedy[:, :-1])
        acceptable = exact if forced is None else exact & forced
        if not self.exact and forced is None:
            draft_lprobs = lprobs[:, :-1].gather(2, drafts.unsqueeze(-1)).squeeze(-1)
            tolerated = torch.zeros_like(exact)
            if str(self.config.accept) == "top":
                best = lprobs[:, :-1].topk(self.top)
                among_best = best.indices.eq(drafts.unsqueeze(-1)).any(-1)
                tolerated = among_best & (best.values[..., 0] - draft_lprobs <= self.gap)
            tolerated[:, : self.config.min_block - 1] = True
            acceptable = exact | (tolerated & draft_lprobs.gt(-math.inf) & drafts.ne(self.eos))
        return acceptable.long().cumprod(1).sum(1)

    def update_policy(self, batch: Batch, counts: List[int]) -> None:
        drafts = batch.state.verified.greedy.size(1) - 1
        if batch.prefix is None or batch.max_length:  # the first drafts may be the prefix
            batch.state.policy.update([count - 1 for count in counts], drafts)

    def drop_finished(self, batch: Batch, unfinished: Tensor) -> None:
        super().drop_finished(batch, unfinished)
        batch.state.verified = batch.state.verified.select(unfinished)

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        extra = {}
        if batch.attention is not None:
            weights = batch.attention[sentence, : len(tokens)].cpu().clone()
            extract = getattr(utils, f"extract_{str(self.options.print_alignment)}_alignment")
            source = batch.source[sentence].cpu()
            extra = dict(attention=weights.t(), alignment=extract(weights, source, tokens, self.pad, self.eos))
        return greedy_hypothesis(tokens, scores, accepted, self.options, **extra)
