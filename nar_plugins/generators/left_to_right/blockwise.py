"""Blockwise parallel decoding (Stern et al. 2018, section 4): exactly the greedy output, several tokens at a time."""

import logging
import math
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.hypothesis import greedy_hypothesis
from nar_plugins.generators.left_to_right.base import Batch, Decision, LeftToRightGenerator, LeftToRightStatistics
from nar_plugins.generators.left_to_right.drafters import choose_drafter
from nar_plugins.generators.left_to_right.drafters.base import Drafts, Verified
from nar_plugins.generators.left_to_right.drafters.heads import HeadsDrafter
from nar_plugins.generators.left_to_right.drafters.length_policy import BlockSize
from nar_plugins.generators.option_values import old_name, option
from nar_plugins.generators.options import MODELS, refuse, refuse_options
from nar_plugins.generators.registry import DecodingConfig, register_generator
from nar_plugins.modules.block_decoder import block_decoder

logger = logging.getLogger(__name__)

TOP = 2  # of --accept top; the mildest of the paper's


@dataclass
class BlockwiseConfig(DecodingConfig):
    drafter: ChoiceEnum(["auto", "heads", "jacobi", "copy", "model"]) = option(
        "auto",
        "where proposals come from: the checkpoint's heads; the verifier's own tokens after a rejected one "
        "(jacobi); the source (copy); the translation of --drafter-path (model); auto: that one where it is given, "
        "heads where there are, else jacobi",
    )
    drafter_path: Optional[str] = option(None, "a cmlm or nat checkpoint whose translations are the proposals")
    drafter_iterations: int = option(1, "passes of a cmlm drafter; more of them draft better and take longer")
    verify_block: Optional[int] = option(
        None, "tokens verified a call; 1: no proposals (unset: follows from their confidence and the batch)"
    )
    draft_vocab_size: Optional[int] = option(
        None,
        "the heads propose the dictionary's first N symbols only (fairseq sorts it by frequency): the same "
        "output, cheaper proposals, and none of a rare word (unset: all)",
    )
    draft_words: Optional[int] = old_name("draft_vocab_size", None)
    accept: ChoiceEnum(["exact", "top"]) = option(
        "exact", "exact: what greedy search would say; top: what is among its best, which changes the output"
    )
    accept_top: Optional[int] = option(None, f"--accept top: the proposal is among this many best tokens ({TOP})")
    accept_gap: Optional[float] = option(
        None, "--accept top: and its log-probability at most this far below the best (no bound)"
    )
    min_block: int = option(
        1,
        "accept at least this many tokens a call after the first, checked or not, up to a proposed </s> "
        "that greedy search would not say; above 1 it changes the output",
    )


@dataclass
class Drafting:
    """What a batch's drafts depend on."""

    memory: Any  # the drafter's, of the B sentences
    size: BlockSize
    wanted: int = 0  # proposals after the next call
    verified: Optional[Verified] = None  # what the last call decided about the active rows


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
    """Greedy search that verifies a block of proposals in every call of the decoder; one model or an ensemble.

    Before a call the first n tokens of a row are greedy search's, the cache holds the inputs before token n, and n is
    not yet fed ("commit and carry"). The call feeds token n and the drafts after it; the verifier's choice after each
    confirms the next draft, and its choice after the last confirmed one is a token more. So a call decides 1 to K
    tokens: a token can only differ from greedy search's where the two best are as close as rounding.
    """

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None, drafter=None):
        refuse_options("blockwise", options, config, rescorer)
        if options.beam == 5:
            logger.info("blockwise is greedy: --beam is not used")
        super().__init__(models, dictionary, config, options, mask)
        self.top = config.accept_top or TOP
        self.gap = math.inf if config.accept_gap is None else config.accept_gap
        self.decoders = [block_decoder(model) for model in self.models]
        self.drafter = choose_drafter(config, self.models, self.decoders, dictionary, mask, drafter)
        full_context = any(getattr(model, "full_context_alignment", False) for model in self.models)
        facts = dict(full_context=full_context, heads=isinstance(self.drafter, HeadsDrafter), top=self.top)
        refuse(MODELS, "blockwise", options, config, most=self.drafter.most + 1, symbols=len(dictionary), **facts)
        if str(config.accept) != "exact" or config.min_block > 1:
            logger.warning(
                "blockwise accepts what greedy search would not say: the output is not that of greedy search"
            )
        self.statistics = BlockwiseStatistics()

    def most_tokens(self, limit: int) -> int:
        return self.drafter.most + 1

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        source, fixed, least = sample["net_input"]["src_tokens"], self.config.verify_block, self.config.min_block - 1
        size = BlockSize(self.drafter, fixed, source.device.type, least)
        return self.decode(Drafting(self.drafter.begin(sample, encoded), size), source, encoded, prefix)

    def propose(self, batch: Batch) -> Drafts:
        """The next drafts, and how many there will be after them.

        They are made when finished rows have left, so that none are made for these (with one sentence, in one call of
        six). The first ones are the prefix, which cannot be rejected.
        """
        now = batch.state
        if now.verified is None and batch.prefix is not None:
            given = batch.prefix[:, : batch.limit]  # <unk> stands for a place that is not given; any draft would do
            drafts = Drafts(given.masked_fill(given.eq(self.pad), self.unk))
        elif now.verified is None or not now.wanted:
            drafts = Drafts(batch.pending[:, :0])
        else:
            drafts = self.drafter.draft(now.verified, now.wanted, now.memory)
            drafts = Drafts(drafts.tokens[:, : now.size.chosen(drafts)])
        now.wanted = now.size.wanted(len(batch.active), batch.limit - batch.shortest - 1)
        self.drafter.ahead(now.wanted, now.size.worth(len(batch.active)))
        return drafts

    def decide(self, batch: Batch, proposal: Drafts) -> Decision:
        """Verify the drafts in one call of the decoders."""
        drafts = proposal.tokens
        fed = torch.cat([batch.pending, drafts], 1)
        self.statistics.mask_positions += fed.numel() * self.decoders[0].masks
        steps = batch.lengths.unsqueeze(1) + torch.arange(fed.size(1), device=fed.device)
        lprobs, features, attention = self.call(batch, fed)
        broken = lprobs[..., 0].isnan()  # a softmax with one NaN is NaN everywhere
        lprobs = self.rules(lprobs, steps, batch.limit, batch.shortest, batch.longest + fed.size(1) - 1, batch.prefix)
        greedy = lprobs.topk(2).indices[..., 0]
        confirmed = self.confirmed(lprobs, greedy, drafts)
        end = confirmed.unsqueeze(1)
        tokens = torch.cat([drafts, batch.pending], 1).scatter(1, end, greedy.gather(1, end))
        counts = confirmed + 1
        features = [one.gather(1, end.unsqueeze(-1).expand(-1, 1, one.size(-1))).squeeze(1) for one in features]
        batch.state.verified = Verified(batch.active, batch.tokens, batch.lengths + counts, features, greedy, confirmed)
        scores = lprobs.gather(2, tokens.unsqueeze(-1)).squeeze(-1)
        return Decision(steps, tokens, scores, counts, broken, attention)

    def call(self, batch: Batch, fed: Tensor) -> tuple:
        """What follows every token fed (b, m): the ensemble's log-probabilities (b, m, V), every model's features
        (b, m, D), and the attention (b, m, S) where it is asked for."""
        aligned = batch.attention is not None
        outputs = [
            decoder(fed, batch.cached, batch.shortest, batch.longest, batch.limit, cache, aligned)
            for decoder, cache in zip(self.decoders, batch.caches)
        ]
        features, attentions = zip(*outputs)
        lprobs = self.mean_lprobs([decoder.logits(one) for decoder, one in zip(self.decoders, features)])
        return lprobs, features, torch.stack(attentions).mean(0) if aligned else None

    def confirmed(self, lprobs: Tensor, greedy: Tensor, drafts: Tensor) -> Tensor:
        """How many drafts (b, n) are accepted, from the first on: (b,) int64. ``</s>`` only where greedy search says
        it.
        """
        exact = drafts.eq(greedy[:, :-1])
        fine = exact
        if str(self.config.accept) == "top" or self.config.min_block > 1:
            before = lprobs[:, :-1]
            value = before.gather(2, drafts.unsqueeze(-1)).squeeze(-1)
            likely = torch.zeros_like(exact)
            if str(self.config.accept) == "top":
                best = before.topk(self.top)
                likely = best.indices.eq(drafts.unsqueeze(-1)).any(-1) & (best.values[..., 0] - value <= self.gap)
            likely[:, : self.config.min_block - 1] = True
            fine = exact | (likely & value.gt(-math.inf) & drafts.ne(self.eos))
        return fine.long().cumprod(1).sum(1)

    def learn(self, batch: Batch, counts: List[int]) -> None:
        drafts = batch.state.verified.greedy.size(1) - 1
        if batch.prefix is None or batch.longest:  # the first drafts may be the prefix
            batch.state.size.learn([count - 1 for count in counts], drafts)

    def keep(self, batch: Batch, live: Tensor) -> None:
        super().keep(batch, live)
        batch.state.verified = batch.state.verified.select(live)

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        extra = {}
        if batch.attention is not None:
            weights = batch.attention[sentence, : len(tokens)].cpu().clone()
            extract = getattr(utils, f"extract_{str(self.options.print_alignment)}_alignment")
            source = batch.source[sentence].cpu()
            extra = dict(attention=weights.t(), alignment=extract(weights, source, tokens, self.pad, self.eos))
        return greedy_hypothesis(tokens, scores, accepted, self.options, **extra)
