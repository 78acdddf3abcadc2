"""Decoding of ``bang`` checkpoints: the tokens of a block in one pass, as many of them kept as the policy says.

A BANG decoder is causal over [what is decided][masks], so the first mask of a block is the next-token prediction and
the later ones look further ahead (Qi et al. 2021). A policy is two numbers a pass: how many masks follow, and how many
of their tokens are kept. All of them take one pass a step.
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
from nar_plugins.generators.left_to_right.drafters.base import MOST
from nar_plugins.generators.options import option, refuse_options
from nar_plugins.generators.registry import DEDUP, DecodingConfig, register_generator
from nar_plugins.modules.linear import CPU_ROWS

logger = logging.getLogger(__name__)


@dataclass
class BangConfig(DecodingConfig):
    bang_policy: ChoiceEnum(["adaptive", "ar", "nar", "block", "prefix", "verify", "cascade"]) = option(
        "adaptive",
        "how many tokens a pass decides: one (ar, fairseq's search with --beam), all (nar), --bang-block "
        "of them (block), one for --bang-prefix passes and then all (prefix), the first ones that are surer than "
        "--bang-tau (adaptive); verify: several, the words of greedy search; cascade: all, and adaptive again "
        "where the result is doubtful",
    )
    bang_block: Optional[int] = option(
        None,
        f"masks a pass (block, adaptive, cascade: {BLOCK}), tokens verified a pass (verify: unset "
        "follows from their confidence and the batch)",
    )
    bang_tau: float = option(0.9, "adaptive, cascade: tokens after the first are kept while at least this probable")
    bang_prefix: int = option(1, "prefix: this many tokens one by one, the rest at once")
    bang_theta: float = option(-0.5, "cascade: the least mean log-probability with which the one-pass output is kept")
    bang_release_output: bool = option(
        False, "drop tokens equal to the one before, then such words, as the release's script does"
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
    """The policies in which a pass decides for itself, by the rules of fairseq's search: with one mask a pass they are
    greedy search. What is registered is ``ParallelBangGenerator``.
    """

    name = "bang"
    feeds_proposals = False  # the masks are not inputs that follow

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
        """The generator of a ``--bang-policy``, ``beam`` for ``ar`` and ``blockwise`` for ``verify``, and its options.

        Raises:
            ValueError: an option is set that the policy does not read.
        """
        policy = str(config.bang_policy)
        others = set().union(*READS.values()) - set(READS[policy])
        for f in fields(BangConfig):
            if f.name in others and str(getattr(config, f.name)) != str(f.default):
                raise ValueError(f"--{f.name.replace('_', '-')} is not read by --bang-policy {policy}: leave it out")
        if policy == "verify" and config.bang_block is not None and not 1 <= config.bang_block <= MOST + 1:
            raise ValueError(
                f"--bang-block {config.bang_block}: --bang-policy verify takes blocks of 1 to {MOST + 1} tokens"
            )
        name, renamed = ALIASES.get(policy, (cls.name, {}))
        return name, Namespace(**{**vars(config), **{new: getattr(config, old) for old, new in renamed.items()}})

    def most_tokens(self, limit: int) -> int:
        return limit + 1

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        source = sample["net_input"]["src_tokens"]
        batch = self.decode(self.policy, source, encoded, active=self.sentences(source))
        if str(self.config.bang_policy) == "cascade":
            self.decode_again(batch, source, encoded)
        return batch

    def sentences(self, source: Tensor) -> Optional[Tensor]:
        """Which sources (B, S) are decoded: (b,) int64; None: all."""
        return None

    def propose(self, batch: Batch) -> Decision:
        """One pass: feed what was decided last, and ask the masks. All of their tokens may stay."""
        masks = batch.state.masks(batch.longest, batch.limit + 1 - batch.shortest)
        self.statistics.mask_positions += masks * len(batch.active)
        last = (batch.lengths - batch.cached).unsqueeze(1)  # of the pending inputs
        features = [
            decoder.decode_step(
                batch.pending, batch.cached, cache, masks, last, batch.most_cached, batch.state.sees_start
            ).squeeze(1)
            for decoder, cache in zip(self.decoders, batch.caches)
        ]
        steps = batch.lengths.unsqueeze(1) + torch.arange(masks, device=last.device)
        tokens, lprobs, broken = self.best(features, steps, batch)
        return Decision(steps, tokens, lprobs, torch.full_like(batch.lengths, masks), broken)

    def decide(self, batch: Batch, proposal: Decision) -> Decision:
        """Keep as many tokens as the policy says."""
        return proposal._replace(counts=batch.state.kept(proposal.lprobs, batch.lengths))

    def best(self, features: List[Tensor], steps: Tensor, batch: Batch) -> tuple:
        """The most probable allowed tokens (b, m), their log-probabilities, and where these are NaN, (b, m) bool, from
        every model's features (b, m, D)."""
        chunk = max(1, CPU_ROWS // steps.size(0)) if steps.device.type == "cpu" else steps.size(1)
        chosen = []
        for place in range(0, steps.size(1), chunk):
            part = slice(place, place + chunk)
            logits = [decoder.output_layer(one[:, part]) for decoder, one in zip(self.decoders, features)]
            lprobs = self.mean_lprobs(logits)
            broken = lprobs[..., 0].isnan()  # a softmax with one NaN is NaN everywhere
            first, last = batch.shortest + place, batch.longest + place + chunk - 1
            value, index = self.rules(lprobs, steps[:, part], batch.limit, first, last).topk(2)
            chosen.append((index[..., 0], value[..., 0], broken))
        return tuple(torch.cat(one, 1) for one in zip(*chosen))

    def decode_again(self, batch: Batch, source: Tensor, encoded: List[Dict]) -> None:
        """Replace the doubtful outputs of one pass by those of ``adaptive``."""
        real = torch.arange(batch.tokens.size(1), device=source.device) < batch.sizes.unsqueeze(1)
        mean = batch.scores.masked_fill(~real, 0).sum(1) / batch.sizes
        same = (batch.tokens[:, 1:] == batch.tokens[:, :-1]) & real[:, 1:]
        doubtful = ((mean < self.config.bang_theta) | same.any(1)).nonzero().squeeze(1)
        if not doubtful.numel():
            return
        second = self.decode(Adaptive(self.config), source, encoded, active=doubtful)
        self.statistics.decoded_again += len(doubtful)
        for name in ("tokens", "scores", "sizes"):
            getattr(batch, name)[doubtful] = getattr(second, name)[doubtful]
        for counts in batch.accepted:  # that pass decided nothing that stayed
            counts[doubtful] = -1
        batch.accepted.extend(second.accepted)

    # -- out -----------------------------------------------------------------------------------------------------------

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        if not len(tokens):  # of an empty source
            return {**empty_hypothesis(self.eos), "accepted": []}
        made = greedy_hypothesis(tokens, scores, accepted, self.options)
        kept = torch.tensor(self.kept(tokens.tolist()), dtype=torch.long)
        return {**made, "tokens": tokens[kept], "positional_scores": scores[kept]}

    def kept(self, tokens: List[int]) -> List[int]:
        """The indices of the tokens that stay in the output.

        The release's script (post_processed_nar.py) drops [CLS], then tokens equal to the one before, then such words.
        """
        kept = [i for i, token in enumerate(tokens) if not (self.release and token == self.bos)]
        for dedup in self.dedups:
            kept = [kept[i] for i in dedup.keep([tokens[i] for i in kept])]
        return kept


@register_generator("bang", dataclass=BangConfig)
class ParallelBangGenerator(BangGenerator):
    """Decodes ``bang`` checkpoints, one or an ensemble, as the non-autoregressive generators do: an empty source has an
    empty translation, and the start symbol is never output.
    """

    needs = ("block_decoder",)  # the methods that are called of a model
    bans_start = True

    def sentences(self, source: Tensor) -> Optional[Tensor]:
        real = source.ne(self.pad).sum(1).gt(1)
        return None if bool(real.all()) else real.nonzero().squeeze(1)
