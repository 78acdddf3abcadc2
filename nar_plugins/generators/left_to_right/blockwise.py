"""Blockwise parallel decoding (Stern et al. 2018, section 4): the words of greedy search, several at a time."""

import logging
import math
import weakref
from argparse import Namespace
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.data.dictionary import knows_mask
from nar_plugins.generators import registry
from nar_plugins.generators.base import refuse_nan
from nar_plugins.generators.hypothesis import greedy_hypothesis
from nar_plugins.generators.left_to_right.drafters.base import (
    CopyDrafter,
    Drafter,
    Drafts,
    HeadsDrafter,
    JacobiDrafter,
    ModelDrafter,
    Verified,
    has_heads,
    heads_drafter,
)
from nar_plugins.generators.left_to_right.drafters.length_policy import BlockSize
from nar_plugins.generators.left_to_right.drafters.masks import BangBlocks, RowDrafter, has_rows
from nar_plugins.generators.left_to_right.greedy_rules import GreedyRules
from nar_plugins.generators.options import refuse_for_one_output, refuse_unserved
from nar_plugins.generators.registry import DecodingConfig, register_generator
from nar_plugins.modules.block_decoder import BlockCache, BlockDecoder
from nar_plugins.modules.linear import fast_linear
from nar_plugins.modules.precision import full

logger = logging.getLogger(__name__)

TOP = 2  # of --accept top; the mildest of the paper's


@dataclass
class BlockwiseConfig(DecodingConfig):
    drafter: ChoiceEnum(["auto", "heads", "jacobi", "copy", "model"]) = field(
        default="auto",
        metadata={
            "help": "where proposals come from: the checkpoint's heads; the verifier's own tokens after a rejected one "
            "(jacobi); the source (copy); the translation of --drafter-path (model); auto: that one where it is given, "
            "heads where there are, else jacobi"
        },
    )
    drafter_path: Optional[str] = field(
        default=None, metadata={"help": "a cmlm or nat checkpoint whose translations are the proposals"}
    )
    drafter_iterations: int = field(
        default=1, metadata={"help": "passes of a cmlm drafter; more of them draft better and take longer"}
    )
    verify_block: Optional[int] = field(
        default=None,
        metadata={
            "help": "tokens verified a call; 1: no proposals (unset: follows from their confidence and the batch)"
        },
    )
    draft_words: Optional[int] = field(
        default=None,
        metadata={
            "help": "the heads propose the dictionary's first N symbols only (fairseq sorts it by frequency): the same "
            "output, cheaper proposals, and none of a rare word (unset: all)"
        },
    )
    accept: ChoiceEnum(["exact", "top"]) = field(
        default="exact",
        metadata={"help": "exact: what greedy search would say; top: what is among its best, which changes the output"},
    )
    accept_top: Optional[int] = field(
        default=None, metadata={"help": f"--accept top: the proposal is among this many best tokens ({TOP})"}
    )
    accept_gap: Optional[float] = field(
        default=None,
        metadata={"help": "--accept top: and its log-probability at most this far below the best (no bound)"},
    )
    min_block: int = field(
        default=1,
        metadata={
            "help": "accept at least this many tokens a call after the first, checked or not, up to a proposed </s> "
            "that "
            "greedy search would not say; above 1 it changes the output"
        },
    )


@dataclass
class Batch:
    """A batch at work: b rows are live of B sentences. Their tokens stay where they are; a row knows its sentence."""

    rows: Tensor  # (b,) int64, the sentence of each row
    lengths: Tensor  # (b,) int64, tokens decided: as many inputs are in the caches
    last: Tensor  # (b, 1) int64, decided but not yet fed
    drafts: Tensor  # (b, n) int64, what follows it, perhaps
    shortest: int  # the least of lengths
    longest: int  # the largest
    limit: int  # no token may stand beyond this index, where only </s> may
    caches: List[BlockCache]
    prefix: Optional[Tensor]  # (b, P) int64
    tokens: Tensor  # (B, W) int64
    scores: Tensor  # (B, W) float32
    attention: Optional[Tensor]  # (B, W, S) float32, where alignments are asked for
    sizes: Tensor  # (B,) int64, tokens decided
    accepted: List[Tensor]  # every call's (B,) int64: tokens decided in it


@register_generator("blockwise", dataclass=BlockwiseConfig)
class BlockwiseGenerator:
    """Greedy search that verifies a block of proposals in every call of the decoder; one model or an ensemble.

    Before a call the first n tokens of a row are greedy search's, the cache holds the inputs before token n, and n is
    not yet fed ("commit and carry"). The call feeds token n and the drafts after it; the verifier's choice after each
    confirms the next draft, and its choice after the last confirmed one is a token more. So a call decides 1 to K
    tokens, and nothing
    that was decided is asked again: a token can only differ from greedy search's where the two best are as close as
        rounding.

    Everything that decides a token is ``SequenceGenerator``'s: the order of the changes to the log-probabilities, the
    limit by the padded width of the sources, and ``topk(2)`` as the choice, whose order among equals is not argmax's.
    """

    honoured = {
        "max_len_a",
        "max_len_b",
        "min_len",
        "unnormalized",
        "lenpen",
        "unkpen",
        "temperature",
        "prefix_size",
        "print_alignment",
    }

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None, drafter=None):
        refuse_options(options, config, rescorer)
        self.models, self.config, self.options = list(models), config, options
        self.pad, self.unk, self.eos, self.mask = dictionary.pad(), dictionary.unk(), dictionary.eos(), mask
        self.rules = GreedyRules(options, self.pad, self.unk, self.eos)
        self.knows_mask = knows_mask(dictionary) and not any(map(registry.is_parallel, self.models))
        self.top = config.accept_top or TOP
        self.gap = math.inf if config.accept_gap is None else config.accept_gap
        self.decoders = [BangBlocks(one.decoder) if has_rows(one) else BlockDecoder(one.decoder) for one in self.models]
        for model in self.models:
            model.eval()
            if options.print_alignment and getattr(model, "full_context_alignment", False):
                raise ValueError("--print-alignment of a model with full-context alignment: use --generator beam")
        self.drafter = self.choose_drafter(dictionary, drafter)
        if config.draft_words is not None and not isinstance(self.drafter, HeadsDrafter):
            raise ValueError("--draft-words is for the proposal heads of a blockwise checkpoint: leave it out")
        if config.verify_block is not None and config.verify_block > self.drafter.most + 1:
            raise ValueError(
                f"--verify-block {config.verify_block}: these proposals are for blocks of at most "
                f"{self.drafter.most + 1} tokens"
            )
        if config.min_block > self.drafter.most + 1:
            raise ValueError(
                f"--min-block {config.min_block}: these proposals are for blocks of at most "
                f"{self.drafter.most + 1} tokens"
            )
        if self.top > len(dictionary):
            raise ValueError(f"--accept-top {self.top}: the dictionary has {len(dictionary)} symbols")
        if str(config.accept) != "exact" or config.min_block > 1:
            logger.warning(
                "blockwise accepts what greedy search would not say: the output is not that of greedy search"
            )
        self.statistics = {"calls": 0, "sentences": 0, "first": 0, "tokens": 0, "masks": 0, "accepted": Counter()}
        weakref.finalize(self, report, self.statistics)  # at the end of the run, however it is driven

    def choose_drafter(self, dictionary, model) -> Drafter:
        """``--drafter``; ``model`` is that of ``--drafter-path``, or None."""
        name = str(self.config.drafter)
        heads = has_rows(self.models[0]) or any(has_heads(model) for model in self.models)
        if (name == "model" and model is None) or (name not in ("auto", "model") and model is not None):
            raise ValueError(f"--drafter {name}: --drafter model and --drafter-path CKPT go together")
        if model is not None:
            return ModelDrafter(model, dictionary, self.mask, self.config)
        if self.config.drafter_iterations != 1:
            raise ValueError("--drafter-iterations needs --drafter-path CKPT, a cmlm")
        if name == "heads" and not heads:
            raise ValueError("--drafter heads: the checkpoint has no proposal heads; use --drafter jacobi or copy")
        if name == "copy":
            return CopyDrafter(self.models, dictionary)
        if has_rows(self.models[0]) and name != "jacobi":
            return RowDrafter(self.decoders, self.mask, self.pad)
        if not heads or name == "jacobi":
            return JacobiDrafter()
        return heads_drafter(self.models, self.mask, self.pad, self.config.draft_words)

    # -- the way of a batch
    # ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None, bos_token=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch, one a sentence.

        Args:
            models: as fairseq passes them; those given at the start are used.
            sample: fairseq's batch. prefix_tokens: (B, P) int64, padded, what every hypothesis begins with.
        """
        if constraints is not None:
            raise ValueError("--constraints cannot be honoured by --generator blockwise: use --generator beam")
        source = sample["net_input"]["src_tokens"]
        dtype = getattr(torch, str(self.config.decode_dtype))
        autocast = torch.autocast(source.device.type, dtype, enabled=dtype != torch.float32)
        # inference_mode costs less an operation than no_grad does, but autocast would cast every weight in every call
        # within it
        lean = torch.inference_mode() if dtype == torch.float32 else nullcontext()
        with lean, fast_linear(self.models, dtype), autocast:
            encoded = [model.encoder.forward_torchscript(sample["net_input"]) for model in self.models]
            batch = self.start(source, encoded, prefix_tokens, self.eos if bos_token is None else bos_token)
            state = self.drafter.begin(sample, encoded)
            least = self.config.min_block - 1
            size = BlockSize(self.drafter, self.config.verify_block, source.device.type, least)
            while batch.rows.numel():
                self.step(batch, state, size)
        return self.hypotheses(batch, source)  # outside, because fairseq changes them in place

    def start(self, source: Tensor, encoded: List[Dict], prefix: Optional[Tensor], bos: int) -> Batch:
        """Nothing decided yet; the first drafts are the prefix, which cannot be rejected.

        Args:
            source: (B, S) int64. encoded: what every model's encoder made of it. bos: the first input.
        """
        sentences, width = source.shape
        limit = self.rules.limit(width, self.models)
        if prefix is None:
            drafts = source.new_empty(sentences, 0)
        else:  # <unk> stands for a place that is not given; another draft would do as well
            drafts = prefix[:, :limit].masked_fill(prefix[:, :limit].eq(self.pad), self.unk)
        room = limit + 2 + self.drafter.most  # a last block may reach beyond the limit
        return Batch(
            rows=torch.arange(sentences, device=source.device),
            lengths=source.new_zeros(sentences),
            last=source.new_full((sentences, 1), bos),
            drafts=drafts,
            shortest=0,
            longest=0,
            limit=limit,
            caches=[decoder.start(out) for decoder, out in zip(self.decoders, encoded)],
            prefix=prefix,
            tokens=source.new_full((sentences, room), self.pad),
            scores=torch.zeros(sentences, room, device=source.device),
            attention=torch.zeros(sentences, room, width, device=source.device)
            if self.options.print_alignment
            else None,
            sizes=source.new_zeros(sentences),
            accepted=[],
        )

    def step(self, batch: Batch, state: Any, size: BlockSize) -> None:
        """One call of the decoders: verify and decide; finished rows leave; the drafter proposes for the others.

        The host looks before the proposals, so that none are made for finished rows (with one sentence, one call in
        six), and again where the drafter says how sure it is of them.
        """
        proposals = size.wanted(len(batch.rows), batch.limit - batch.shortest - 1)
        self.drafter.ahead(proposals, size.worth(len(batch.rows)))
        block = torch.cat([batch.last, batch.drafts], 1)
        self.statistics["masks"] += block.numel() * self.decoders[0].masks
        offsets = torch.arange(block.size(1), device=block.device)
        steps = batch.lengths.unsqueeze(1) + offsets  # index of the token that each position decides
        lprobs, features, attention = self.call(batch, block)
        broken = lprobs[..., 0].isnan()  # a softmax with one NaN is NaN everywhere
        lprobs = self.rules(lprobs, steps, batch.limit, batch.shortest, batch.longest + block.size(1) - 1, batch.prefix)
        greedy = lprobs.topk(2).indices[..., 0]

        confirmed = self.confirmed(lprobs, greedy, batch.drafts)
        end = confirmed.unsqueeze(1)
        decided = torch.cat([batch.drafts, batch.last], 1).scatter(1, end, greedy.gather(1, end))
        ended = decided.eq(self.eos) & (offsets <= end)
        done = ended.any(1)
        counts = torch.where(done, ended.long().argmax(1), confirmed) + 1
        lengths = batch.lengths + counts

        # the columns after the decided ones are written too: the next call writes over them, or nobody reads them
        here = (batch.rows.unsqueeze(1), steps)
        batch.tokens[here] = decided
        batch.scores[here] = lprobs.gather(2, decided.unsqueeze(-1)).squeeze(-1).float()
        if attention is not None:
            batch.attention[here] = attention
        batch.sizes[batch.rows] = lengths
        batch.accepted.append(torch.zeros_like(batch.sizes).index_copy(0, batch.rows, counts))

        place = (counts - 1).unsqueeze(1)
        features = [one.gather(1, place.unsqueeze(-1).expand(-1, 1, one.size(-1))).squeeze(1) for one in features]
        verified = Verified(batch.rows, batch.tokens, lengths, features, greedy, counts - 1)
        batch.lengths, batch.last = lengths, decided.gather(1, place)

        forced = batch.prefix is not None and not batch.longest
        broken = (broken & (offsets < counts.unsqueeze(1))).any(1)
        lengths_now, counts_now, done_now, nan = torch.stack([lengths, counts, done.long(), broken.long()]).tolist()
        refuse_nan(any(nan))
        live = [row for row, over in enumerate(done_now) if not over]
        batch.shortest = min((lengths_now[row] for row in live), default=0)
        batch.longest = max((lengths_now[row] for row in live), default=0)
        if not forced:
            size.learn([counts_now[row] - 1 for row in live], block.size(1) - 1)
        if len(live) < len(done_now):
            rows = torch.tensor(live, dtype=torch.long, device=block.device)
            verified = verified.select(rows)
            self.keep(batch, rows)
        drafts = self.propose(verified, proposals if live else 0, state)
        batch.drafts = drafts.tokens[:, : size.chosen(drafts)]

    def keep(self, batch: Batch, live: Tensor) -> None:
        """Only these rows (n,) go on."""
        for name in ("rows", "lengths", "last", "prefix"):
            value = getattr(batch, name)
            setattr(batch, name, None if value is None else value[live])
        for cache in batch.caches if live.numel() else ():
            cache.select(live)

    # -- the verifier
    # ------------------------------------------------------------------------------------------------------

    def call(self, batch: Batch, block: Tensor) -> tuple:
        """What follows every token of the block (b, m): the ensemble's log-probabilities (b, m, V), without ``<mask>``
        unless it is a word, every model's features (b, m, D), and the attention (b, m, S) where it is asked for."""
        lprobs, features, attentions = [], [], []
        for decoder, cache in zip(self.decoders, batch.caches):
            x, attention = decoder(
                block, batch.lengths, batch.shortest, batch.longest, batch.limit, cache, batch.attention is not None
            )
            logits = decoder.logits(x)
            if self.options.temperature != 1:
                logits = logits / self.options.temperature
            if not self.knows_mask:
                logits[..., self.mask] = -math.inf  # an AR model never learnt it
            lprobs.append(full(logits).log_softmax(-1))
            features.append(x)
            attentions.append(attention)
        mean = lprobs[0] if len(lprobs) == 1 else torch.stack(lprobs).logsumexp(0) - math.log(len(lprobs))
        return mean, features, None if batch.attention is None else torch.stack(attentions).mean(0)

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

    def propose(self, verified: Verified, count: int, state: Any) -> Drafts:
        """The next drafts; none for a count of 0."""
        if count == 0:
            return Drafts(verified.lengths.new_empty(verified.lengths.size(0), 0))
        return self.drafter.draft(verified, count, state)

    # -- out
    # ---------------------------------------------------------------------------------------------------------------

    def hypotheses(self, batch: Batch, source: Tensor) -> List[List[Dict]]:
        """fairseq's hypotheses, on the host; with ``accepted``, the tokens decided in each call, and perhaps
        ``history``.
        """
        tokens, scores, sizes, source = (one.cpu() for one in (batch.tokens, batch.scores, batch.sizes, source))
        calls = torch.stack(batch.accepted, 1).tolist()
        found = []
        for b, size in enumerate(sizes.tolist()):
            accepted = [count for count in calls[b] if count]
            text = tokens[b, :size].clone()
            extra = {}
            if batch.attention is not None:
                weights = batch.attention[b, :size].cpu().clone()
                extract = getattr(utils, f"extract_{str(self.options.print_alignment)}_alignment")
                extra = dict(attention=weights.t(), alignment=extract(weights, source[b], text, self.pad, self.eos))
            found.append([greedy_hypothesis(text, scores[b, :size], accepted, self.options, **extra)])
            self.statistics["first"] += accepted[0]
            self.statistics["tokens"] += size
            self.statistics["accepted"].update(accepted[1:])
        self.statistics["calls"] += len(batch.accepted)
        self.statistics["sentences"] += len(found)
        return found


def refuse_options(options: Namespace, config, rescorer) -> None:
    """Raise for the first option that cannot be honoured; the message names it."""
    refuse_unserved(options, "blockwise", BlockwiseGenerator.honoured, "use --beam 1, or --generator beam")
    if options.beam == 5:
        logger.info("blockwise is greedy: --beam is not used")
    refuse_for_one_output(options, "blockwise", rescorer)
    for name in ("verify_block", "accept_top", "min_block", "draft_words"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least one token is needed")
    if config.verify_block is not None and config.min_block > config.verify_block:
        raise ValueError(
            f"--min-block {config.min_block}: no more than --verify-block {config.verify_block} can be accepted"
        )
    if config.accept_gap is not None and config.accept_gap < 0:
        raise ValueError(f"--accept-gap {config.accept_gap}: choose a number from 0 up")
    if str(config.accept) == "exact" and (config.accept_top is not None or config.accept_gap is not None):
        raise ValueError("--accept-top and --accept-gap need --accept top")


def report(statistics: Dict) -> None:
    """The log's line at the end of a run."""
    accepted, sentences, tokens = statistics["accepted"], statistics["sentences"], statistics["tokens"]
    if not sentences:
        return
    calls = sum(accepted.values())
    blocks = f"{(tokens - statistics['first']) / calls:.2f}" if calls else "none"
    histogram = " ".join(f"{size}:{accepted[size]}" for size in sorted(accepted))
    logger.info(
        f"blockwise: {sentences} sentences, {statistics['calls']} decoder calls; "
        f"{tokens / (calls + sentences):.2f} tokens a call of a sentence; "
        f"mean accepted block {blocks} after the first call (tokens:calls {histogram})"
    )
