"""Decoding of ``bang`` checkpoints: a pass predicts a block of tokens, and the policy decides how many are kept.

A BANG decoder is causal over the decided tokens and the masks after them. So the first mask of a block is the
next-token prediction, and the later ones predict further ahead (Qi et al. 2021). For every pass a policy gives the
number of masks and the number of predicted tokens that are kept.
"""

import logging
from argparse import Namespace
from dataclasses import dataclass, fields
from typing import Dict, List, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, greedy_hypothesis
from nar_plugins.generators.left_to_right.bang_policies import ALIASES, BLOCK, POLICIES, READS, Adaptive
from nar_plugins.generators.left_to_right.base import Batch, Decision, LeftToRightGenerator, LeftToRightStatistics
from nar_plugins.generators.left_to_right.drafters.base import MAX_DRAFT_TOKENS
from nar_plugins.generators.left_to_right.logits_processor import nan_positions
from nar_plugins.generators.option_values import old_name, option
from nar_plugins.generators.options import refuse_options
from nar_plugins.generators.registry import DEDUP, DecodingConfig, register_generator
from nar_plugins.models.flags import flag
from nar_plugins.modules.best_of_rows import first_of_two
from nar_plugins.modules.linear import CPU_ROWS

logger = logging.getLogger(__name__)


@dataclass
class BangConfig(DecodingConfig):
    bang_policy: ChoiceEnum(["adaptive", "ar", "nar", "block", "prefix", "verify", "cascade"]) = option(
        "adaptive",
        "how many tokens a pass decides: one (ar, fairseq's search with --beam), all (nar), --bang-block "
        "of them (block), one for --bang-prefix passes and then all (prefix), the longest prefix with a probability of "
        "at least --bang-tau each (adaptive); verify: several, exactly the greedy output; cascade: all, and adaptive "
        "again where the one-pass output repeats a token or scores below --bang-min-score",
    )
    bang_block: Optional[int] = option(
        None,
        f"masks a pass (block, adaptive, cascade: {BLOCK}), tokens verified a pass (verify; unset: chosen by the "
        "drafts' probabilities and the batch size)",
    )
    bang_tau: float = option(0.9, "adaptive, cascade: tokens after the first are kept while at least this probable")
    bang_prefix: int = option(1, "prefix: this many tokens are decided one by one, the rest in one pass")
    bang_min_score: float = option(
        -0.5, "cascade: the one-pass output is kept where its mean log-probability is at least this"
    )
    bang_theta: float = old_name("bang_min_score", -0.5)
    bang_release_output: bool = option(
        False, "drop tokens that repeat the one before, then words that do, as the release's script does"
    )
    dedup: DEDUP = option("none", "drop consecutive repeated tokens, or words, from the output")


@dataclass
class BangStatistics(LeftToRightStatistics):
    decoded_again: int = 0  # sentences, of a cascade

    def line(self) -> Optional[str]:
        if not self.mask_positions:  # nothing was decoded, or empty sources only
            return None
        again = f", {self.decoded_again} sentences decoded again" if self.decoded_again else ""
        return (
            f"bang: {self.sentences} sentences, {self.sentence_calls / self.sentences:.2f} passes and "
            f"{self.tokens / self.sentences:.2f} tokens a sentence; "
            f"{1 - self.tokens / self.mask_positions:.1%} of the masks wasted{again}"
        )


class BangGenerator(LeftToRightGenerator):
    """The policies that decide without verification. With one mask a pass they are fairseq's greedy search.

    The registered generator is ``ParallelBangGenerator``.
    """

    name = "bang"
    feeds_proposals = False  # masks are fed in place of the proposed tokens

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        refuse_options("bang", options, config, rescorer)
        if options.beam == 5:
            logger.info(f"--bang-policy {config.bang_policy} has no beam: --beam is not used; --bang-policy ar has one")
        super().__init__(models, dictionary, config, options, mask)
        self.decoders = [model.block_decoder().decoder for model in self.models]
        self.policy = POLICIES[str(config.bang_policy)](config)
        self.release = config.bang_release_output
        self.dedups = [Dedup(how, dictionary) for how in (("token", "word") if self.release else (str(config.dedup),))]
        self.statistics = BangStatistics()

    @classmethod
    def served_by(cls, config: Namespace) -> Tuple[str, Namespace]:
        """The generator of a ``--bang-policy`` and its options: ``beam`` for ``ar``, ``blockwise`` for ``verify``.

        Raises:
            ValueError: an option is set that the policy does not read.
        """
        policy = str(config.bang_policy)
        others = set().union(*READS.values()) - set(READS[policy])
        for f in fields(BangConfig):
            if f.name in others and str(getattr(config, f.name)) != str(f.default):
                raise ValueError(f"{flag(f.name)} is not read by --bang-policy {policy}: leave it out")
        if policy == "verify" and config.bang_block is not None and not 1 <= config.bang_block <= MAX_DRAFT_TOKENS + 1:
            raise ValueError(
                f"--bang-block {config.bang_block}: --bang-policy verify takes blocks of 1 to {MAX_DRAFT_TOKENS + 1} "
                "tokens"
            )
        name, renamed = ALIASES.get(policy, (cls.name, {}))
        return name, Namespace(**{**vars(config), **{new: getattr(config, old) for old, new in renamed.items()}})

    def max_tokens(self, limit: int) -> int:
        return limit + 1

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        source = sample["net_input"]["src_tokens"]
        batch = self.decode(self.policy, source, encoded, active=self.sentences(source))
        if str(self.config.bang_policy) == "cascade":
            self.decode_again(batch, source, encoded)
        return batch

    def sentences(self, source: Tensor) -> Optional[Tensor]:
        """The sentences to decode, (b,) int64, of sources (B, S); None: all."""
        return None

    def propose(self, batch: Batch) -> Decision:
        """One pass: feed the pending tokens and the masks; a proposal keeps all predicted tokens."""
        masks = batch.state.masks(batch.max_length, batch.limit + 1 - batch.min_length)
        self.statistics.mask_positions += masks * len(batch.active)
        last = (batch.lengths - batch.cached).unsqueeze(1)  # index of the last pending input
        features = [
            decoder.decode_step(
                batch.pending, batch.cached, cache, masks, last, batch.max_cached, batch.state.sees_start
            ).squeeze(1)
            for decoder, cache in zip(self.decoders, batch.caches)
        ]
        steps = batch.lengths.unsqueeze(1) + torch.arange(masks, device=last.device)
        tokens, lprobs, nan = self.best_tokens(features, steps, batch)
        return Decision(steps, tokens, lprobs, torch.full_like(batch.lengths, masks), nan)

    def decide(self, batch: Batch, proposal: Decision) -> Decision:
        """Keep as many tokens as the policy decides."""
        return proposal._replace(counts=batch.state.kept(proposal.lprobs, batch.lengths))

    def best_tokens(self, features: List[Tensor], steps: Tensor, batch: Batch) -> tuple:
        """From every model's features (b, m, D): the most probable allowed tokens (b, m), their log-probabilities
        (b, m), and where the model's output is NaN, (b, m) bool."""
        chunk = max(1, CPU_ROWS // steps.size(0)) if steps.device.type == "cpu" else steps.size(1)
        results = []
        for start in range(0, steps.size(1), chunk):
            part = slice(start, start + chunk)
            logits = [decoder.output_layer(states[:, part]) for decoder, states in zip(self.decoders, features)]
            lprobs = self.mean_lprobs(logits)
            nan = nan_positions(lprobs)
            first, last = batch.min_length + start, batch.max_length + start + chunk - 1
            lprobs = self.processor(lprobs, steps[:, part], batch.limit, first, last, None, nan)
            best, tokens = first_of_two(lprobs)
            nan = torch.zeros_like(tokens, dtype=torch.bool) if nan is None else nan
            results.append((tokens, best, nan))
        return tuple(torch.cat(chunks, 1) for chunks in zip(*results))

    def decode_again(self, batch: Batch, source: Tensor, encoded: List[Dict]) -> None:
        """Replace one-pass outputs that repeat a token or score below ``--bang-min-score`` by those of ``adaptive``."""
        real = torch.arange(batch.tokens.size(1), device=source.device) < batch.sizes.unsqueeze(1)
        mean = batch.scores.masked_fill(~real, 0).sum(1) / batch.sizes
        repeats = (batch.tokens[:, 1:] == batch.tokens[:, :-1]) & real[:, 1:]
        doubtful = ((mean < self.config.bang_min_score) | repeats.any(1)).nonzero().squeeze(1)
        if not doubtful.numel():
            return
        second = self.decode(Adaptive(self.config), source, encoded, active=doubtful)
        self.statistics.decoded_again += len(doubtful)
        for name in ("tokens", "scores", "sizes"):
            getattr(batch, name)[doubtful] = getattr(second, name)[doubtful]
        for counts in batch.accepted:  # a pass that counts, and decided no token of the output
            counts[doubtful] = -1
        batch.accepted.extend(second.accepted)

    # -- hypotheses ----------------------------------------------------------------------------------------------------

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        if not len(tokens):  # of an empty source
            return {**empty_hypothesis(self.eos), "accepted": []}
        hypothesis = greedy_hypothesis(tokens, scores, accepted, self.options)
        kept = torch.tensor(self.kept(tokens.tolist()), dtype=torch.long)
        return {**hypothesis, "tokens": tokens[kept], "positional_scores": scores[kept]}

    def kept(self, tokens: List[int]) -> List[int]:
        """The indices of the tokens that stay in the output.

        The release's script (post_processed_nar.py) drops [CLS], then tokens that repeat the one before, then words.
        """
        kept = [i for i, token in enumerate(tokens) if not (self.release and token == self.bos)]
        for dedup in self.dedups:
            kept = [kept[i] for i in dedup.keep([tokens[i] for i in kept])]
        return kept


@register_generator("bang", dataclass=BangConfig)
class ParallelBangGenerator(BangGenerator):
    """Decodes ``bang`` checkpoints, one or an ensemble.

    As in the non-autoregressive generators, an empty source has an empty translation, and the start symbol is never
    output.
    """

    needs = ("block_decoder",)  # methods of the model that are called
    bans_start = True

    def sentences(self, source: Tensor) -> Optional[Tensor]:
        nonempty = source.ne(self.pad).sum(1).gt(1)
        return None if bool(nonempty.all()) else nonempty.nonzero().squeeze(1)
