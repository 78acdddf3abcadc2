"""Decoding of ``bang`` checkpoints: the tokens of a block in one pass, as many of them kept as the policy says.

A BANG decoder is causal over [what is decided][masks], so the first mask of a block is the next-token prediction and
the later ones look further ahead (Qi et al. 2021). A policy is two numbers a pass: how many masks follow, and how many
of their tokens are kept. All of them take one pass a step.
"""

import logging
import math
import weakref
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Dict, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.base import refuse_nan
from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, greedy_hypothesis
from nar_plugins.generators.left_to_right.bang_policies import BLOCK, POLICIES, READS, Adaptive, Policy
from nar_plugins.generators.left_to_right.drafters.base import MOST
from nar_plugins.generators.left_to_right.greedy_rules import GreedyRules
from nar_plugins.generators.options import refuse_for_one_output, refuse_unserved
from nar_plugins.generators.registry import DEDUP, DecodingConfig, register_generator
from nar_plugins.modules.linear import CPU_ROWS, fast_linear
from nar_plugins.modules.precision import full

logger = logging.getLogger(__name__)


@dataclass
class BangConfig(DecodingConfig):
    bang_policy: ChoiceEnum(["adaptive", "ar", "nar", "block", "prefix", "verify", "cascade"]) = field(
        default="adaptive",
        metadata={
            "help": "how many tokens a pass decides: one (ar, fairseq's search with --beam), all (nar), --bang-block "
            "of "
            "them (block), one for --bang-prefix passes and then all (prefix), the first ones that are surer than "
            "--bang-tau (adaptive); verify: several, the words of greedy search; cascade: all, and adaptive again "
            "where "
            "the result is doubtful"
        },
    )
    bang_block: Optional[int] = field(
        default=None,
        metadata={
            "help": f"masks a pass (block, adaptive, cascade: {BLOCK}), tokens verified a pass (verify: unset "
            "follows from their confidence and the batch)"
        },
    )
    bang_tau: float = field(
        default=0.9,
        metadata={"help": "adaptive, cascade: tokens after the first are kept while at least this probable"},
    )
    bang_prefix: int = field(default=1, metadata={"help": "prefix: this many tokens one by one, the rest at once"})
    bang_theta: float = field(
        default=-0.5,
        metadata={"help": "cascade: the least mean log-probability with which the one-pass output is kept"},
    )
    bang_release_output: bool = field(
        default=False,
        metadata={"help": "drop tokens equal to the one before, then such words, as the release's script does"},
    )
    dedup: DEDUP = field(
        default="none", metadata={"help": "drop consecutive repeated tokens, or words, from the output"}
    )


@dataclass
class Batch:
    """A batch at work: b rows are live of B sentences. Their tokens stay where they are; a row knows its sentence."""

    rows: Tensor  # (b,) int64, the sentence of each row
    lengths: Tensor  # (b,) int64, tokens decided
    fed: Tensor  # (b,) int64, inputs in the caches
    pending: Tensor  # (b, m) int64, inputs to feed: <s> or the tokens decided last, padded
    counts: Tensor  # (b,) int64, how many of them are real
    shortest: int  # the least of lengths
    longest: int  # the largest
    most_fed: int  # the largest of fed
    limit: int  # no token may stand beyond this index, where only </s> may
    caches: List
    tokens: Tensor  # (B, W) int64
    scores: Tensor  # (B, W) float32
    sizes: Tensor  # (B,) int64, tokens decided
    accepted: List[Tensor]  # every pass's (B,) int64: tokens decided in it


class BangGenerator:
    """The policies in which a pass decides for itself, by the rules of fairseq's search: with one mask a pass they are
    greedy search. What is registered is ``ParallelBangGenerator``.
    """

    honoured = {"max_len_a", "max_len_b", "min_len", "unnormalized", "lenpen", "unkpen", "temperature"}

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        refuse_options(options, config, rescorer)
        self.models, self.config, self.options = list(models), config, options
        self.eos, self.mask = dictionary.eos(), mask
        self.pad, self.bos = dictionary.pad(), dictionary.bos()
        self.rules = GreedyRules(options, self.pad, dictionary.unk(), self.eos)
        self.policy = POLICIES[str(config.bang_policy)](config)
        self.release = config.bang_release_output
        self.dedups = [Dedup(how, dictionary) for how in (("token", "word") if self.release else (str(config.dedup),))]
        for model in self.models:
            model.eval()
        self.statistics = {"sentences": 0, "passes": 0, "masks": 0, "tokens": 0, "again": 0}
        weakref.finalize(self, report, self.statistics)  # at the end of the run, however it is driven

    # -- the way of a batch --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch, one a sentence.

        Args:
            models: as fairseq passes them; those given at the start are used.
            sample: fairseq's batch.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError(
                "--prefix-size and --constraints cannot be honoured by --generator bang: use --bang-policy ar"
            )
        net_input = sample["net_input"]
        source = net_input["src_tokens"]
        dtype = getattr(torch, str(self.config.decode_dtype))
        with fast_linear(self.models, dtype), torch.autocast(source.device.type, dtype, enabled=dtype != torch.float32):
            return self.translate([model.encoder.forward_torchscript(net_input) for model in self.models], source)

    def translate(self, encoded: List[Dict], source: Tensor) -> List[List[Dict]]:
        """The hypotheses of encoded sources (B, S)."""
        found = self.decode(encoded, source, self.policy)
        if str(self.config.bang_policy) == "cascade":
            self.decode_again(found, encoded, source)
        return self.hypotheses(found)

    def decode(self, encoded: List[Dict], source: Tensor, policy: Policy) -> Batch:
        """All passes over all sentences."""
        batch = self.start(encoded, source)
        while batch.rows.numel():
            self.step(batch, policy)
        return batch

    def start(self, encoded: List[Dict], source: Tensor) -> Batch:
        sentences, width = source.shape
        limit = self.rules.limit(width, self.models)
        room = 2 * limit + 2  # a last block may reach beyond the limit
        zeros = source.new_zeros(sentences)
        return Batch(
            rows=torch.arange(sentences, device=source.device),
            lengths=zeros,
            fed=zeros,
            pending=source.new_full((sentences, 1), self.eos),
            counts=zeros + 1,
            shortest=0,
            longest=0,
            most_fed=0,
            limit=limit,
            caches=[model.decoder.start(out) for model, out in zip(self.models, encoded)],
            tokens=source.new_full((sentences, room), self.pad),
            scores=torch.zeros(sentences, room, device=source.device),
            sizes=zeros.clone(),
            accepted=[],
        )

    def step(self, batch: Batch, policy: Policy) -> None:
        """One pass: feed what was decided last, ask the masks, keep tokens; finished rows leave. The host looks
        once.
        """
        masks = policy.masks(batch.longest, batch.limit + 1 - batch.shortest)
        offsets = torch.arange(masks, device=batch.rows.device)
        steps = batch.lengths.unsqueeze(1) + offsets
        last = (batch.counts - 1).unsqueeze(1)
        features = [
            model.decoder.block(
                batch.pending, batch.fed, cache, masks, last, batch.most_fed, policy.sees_start
            ).squeeze(1)
            for model, cache in zip(self.models, batch.caches)
        ]
        words, lprobs, broken = self.best(features, steps, batch)

        counts = policy.kept(lprobs, batch.lengths)
        ended = words.eq(self.eos) & (offsets < counts.unsqueeze(1))
        done = ended.any(1)
        counts = torch.where(done, ended.long().argmax(1) + 1, counts)

        # the columns after the kept ones are written too: the next pass writes over them, or nobody reads them
        here = (batch.rows.unsqueeze(1), steps)
        batch.tokens[here], batch.scores[here] = words, lprobs
        batch.fed, batch.lengths = batch.fed + batch.counts, batch.lengths + counts
        batch.sizes[batch.rows] = batch.lengths
        batch.accepted.append(torch.zeros_like(batch.sizes).index_copy(0, batch.rows, counts))
        self.statistics["masks"] += masks * len(batch.rows)

        broken = (broken & (offsets < counts.unsqueeze(1))).any(1)
        looked = torch.stack([done.long(), batch.lengths, counts, batch.fed, broken.long()])
        over, lengths, kept, fed, nan = looked.tolist()
        refuse_nan(any(nan))
        live = [row for row, finished in enumerate(over) if not finished]
        batch.shortest = min((lengths[row] for row in live), default=0)
        batch.longest = max((lengths[row] for row in live), default=0)
        batch.most_fed = max((fed[row] for row in live), default=0)
        batch.pending, batch.counts = words[:, : max((kept[row] for row in live), default=0)], counts
        if len(live) < len(over):
            keep(batch, torch.tensor(live, dtype=torch.long, device=batch.rows.device))

    def best(self, features: List[Tensor], steps: Tensor, batch: Batch) -> tuple:
        """The most probable allowed tokens (b, m), their log-probabilities, and where these are NaN, (b, m) bool, from
        every model's features (b, m, D)."""
        rows = max(1, CPU_ROWS // steps.size(0)) if steps.device.type == "cpu" else steps.size(1)
        found = []
        for place in range(0, steps.size(1), rows):
            part = slice(place, place + rows)
            each = []
            for model, one in zip(self.models, features):
                logits = full(model.decoder.output_layer(one[:, part])) / self.options.temperature
                logits[..., self.mask] = -math.inf
                each.append(logits.log_softmax(-1))
            lprobs = each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - math.log(len(each))
            broken = lprobs[..., 0].isnan()  # a softmax with one NaN is NaN everywhere
            first, last = batch.shortest + place, batch.longest + place + rows - 1
            value, index = self.allowed(self.rules(lprobs, steps[:, part], batch.limit, first, last)).topk(2)
            found.append((index[..., 0], value[..., 0], broken))
        return tuple(torch.cat(one, 1) for one in zip(*found))

    def allowed(self, lprobs: Tensor) -> Tensor:
        """Log-probabilities (b, m, V) with -inf for what is never said besides what fairseq's search forbids."""
        return lprobs

    # -- cascade
    # ---------------------------------------------------------------------------------------------------------

    def decode_again(self, found: Batch, encoded: List[Dict], source: Tensor) -> None:
        """Replace the doubtful outputs of one pass by those of ``adaptive``."""
        places = torch.arange(found.tokens.size(1), device=source.device)
        real = places < found.sizes.unsqueeze(1)
        mean = found.scores.masked_fill(~real, 0).sum(1) / found.sizes
        same = (found.tokens[:, 1:] == found.tokens[:, :-1]) & real[:, 1:]
        rows = ((mean < self.config.bang_theta) | same.any(1)).nonzero().squeeze(1)
        if not rows.numel():
            return
        chosen = [model.encoder.reorder_encoder_out(out, rows) for model, out in zip(self.models, encoded)]
        second = self.decode(chosen, source[rows], Adaptive(self.config))
        self.statistics["again"] += len(rows)
        for name in ("tokens", "scores", "sizes"):
            getattr(found, name)[rows] = getattr(second, name)
        for counts in found.accepted:  # that pass decided nothing that stayed
            counts[rows] = -1
        found.accepted.extend(torch.zeros_like(found.sizes).index_copy(0, rows, counts) for counts in second.accepted)

    # -- out
    # -------------------------------------------------------------------------------------------------------------

    def hypotheses(self, found: Batch) -> List[List[Dict]]:
        """fairseq's hypotheses, on the host; with ``accepted``, the tokens decided in each pass, and perhaps
        ``history``.
        """
        tokens, scores, sizes = (one.cpu() for one in (found.tokens, found.scores, found.sizes))
        passes = torch.stack(found.accepted, 1).tolist()
        hypos = []
        for b, size in enumerate(sizes.tolist()):
            accepted = [max(count, 0) for count in passes[b] if count]
            text = tokens[b, :size].clone()
            made = greedy_hypothesis(text, scores[b, :size], accepted, self.options)
            kept = torch.tensor(self.kept(text.tolist()), dtype=torch.long)
            hypos.append([{**made, "tokens": text[kept], "positional_scores": scores[b, kept]}])
            self.statistics["passes"] += len(accepted)
            self.statistics["tokens"] += size
        self.statistics["sentences"] += len(hypos)
        return hypos

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
    empty translation, and ``<s>`` is never said.

    (``ar`` is fairseq's search and ``verify`` the generator ``blockwise``; the task hands them over.)
    """

    def translate(self, encoded: List[Dict], source: Tensor) -> List[List[Dict]]:
        rows = source.ne(self.pad).sum(1).gt(1).nonzero().squeeze(1)
        if len(rows) == len(source):
            return super().translate(encoded, source)
        said = {}
        if len(rows):
            chosen = [model.encoder.reorder_encoder_out(out, rows) for model, out in zip(self.models, encoded)]
            said = dict(zip(rows.tolist(), super().translate(chosen, source[rows])))
        self.statistics["sentences"] += len(source) - len(rows)
        return [said.get(b) or [self.nothing()] for b in range(len(source))]

    def nothing(self) -> Dict:
        """The hypothesis of an empty source."""
        made = {**empty_hypothesis(self.eos), "accepted": []}
        return {**made, "history": []} if self.options.retain_iter_history else made

    def allowed(self, lprobs: Tensor) -> Tensor:
        if self.bos != self.eos:
            lprobs[..., self.bos] = -math.inf
        return lprobs


def served_by(config: Namespace) -> str:
    """The generator of a ``--bang-policy``: ``ar`` is fairseq's search, ``verify`` is ``blockwise``, and ``config`` is
    told the size of its blocks.

    Raises:
        ValueError: an option is set that the policy does not read.
    """
    policy = str(config.bang_policy)
    others = set().union(*READS.values()) - set(READS[policy])
    for option in fields(BangConfig):
        if option.name in others and str(getattr(config, option.name)) != str(option.default):
            raise ValueError(f"--{option.name.replace('_', '-')} is not read by --bang-policy {policy}: leave it out")
    if policy == "verify":
        if config.bang_block is not None and not 1 <= config.bang_block <= MOST + 1:
            raise ValueError(
                f"--bang-block {config.bang_block}: --bang-policy verify takes blocks of 1 to {MOST + 1} tokens"
            )
        config.verify_block = config.bang_block
    return {"ar": "beam", "verify": "blockwise"}.get(policy, "bang")


def keep(batch: Batch, live: Tensor) -> None:
    """Only these rows (n,) go on."""
    for name in ("rows", "lengths", "fed", "pending", "counts"):
        setattr(batch, name, getattr(batch, name)[live])
    for cache in batch.caches if live.numel() else ():
        cache.select(live)


def refuse_options(options: Namespace, config, rescorer) -> None:
    """Raise for the first option that cannot be honoured or makes no sense; the message names it."""
    refuse_unserved(options, "bang", BangGenerator.honoured, "use --bang-policy ar")
    if options.beam == 5:
        logger.info(f"--bang-policy {config.bang_policy} has no beam: --beam is not used; --bang-policy ar has one")
    refuse_for_one_output(options, "bang", rescorer)
    if config.bang_block is not None and config.bang_block < 1:
        raise ValueError(f"--bang-block {config.bang_block}: at least one token a pass is needed")
    if config.bang_prefix < 0:
        raise ValueError(f"--bang-prefix {config.bang_prefix}: choose a number from 0 up")
    if config.bang_tau < 0:
        raise ValueError(f"--bang-tau {config.bang_tau}: choose a probability; above 1 is one token a pass")
    if config.bang_theta > 0:
        raise ValueError(f"--bang-theta {config.bang_theta}: a mean log-probability is at most 0")
    if config.bang_release_output and str(config.dedup) != "none":
        raise ValueError("--bang-release-output drops repeated tokens and words by itself: leave --dedup out")


def report(statistics: Dict) -> None:
    """The log's line at the end of a run."""
    if not statistics["masks"]:  # nothing was decoded, or empty sources only
        return
    again = f", {statistics['again']} sentences decoded again" if statistics["again"] else ""
    logger.info(
        f"bang: {statistics['sentences']} sentences, {statistics['passes'] / statistics['sentences']:.2f} passes and "
        f"{statistics['tokens'] / statistics['sentences']:.2f} tokens a sentence; "
        f"{1 - statistics['tokens'] / statistics['masks']:.1%} of the masks wasted{again}"
    )
