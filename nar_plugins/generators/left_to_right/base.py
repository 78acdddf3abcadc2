"""The loop of all generators that decode from left to right, one token or several a call of the decoder."""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.generators.base import Generator, Statistics, ban, banned_symbols, ensemble_mean, refuse_nan
from nar_plugins.generators.hypothesis import greedy_hypothesis
from nar_plugins.generators.left_to_right.greedy_rules import GreedyRules
from nar_plugins.generators.options import refuse_in_batch
from nar_plugins.modules.precision import full


@dataclass
class Batch:
    """A batch of B sentences, b of which are active. The tokens stay where they are; an active row knows its
    sentence.
    """

    state: Any  # a subclass's
    active: Tensor  # (b,) int64, the sentence of each row
    lengths: Tensor  # (b,) int64, tokens decided
    cached: Tensor  # (b,) int64, inputs in the caches; the first input is the start token
    pending: Tensor  # (b, m) int64, the inputs after those, up to the last decided token, padded
    limit: int  # no token may stand beyond this index, where only </s> may
    caches: List  # every model's
    prefix: Optional[Tensor]  # (b, P) int64, padded, what the outputs begin with
    source: Tensor  # (B, S) int64
    tokens: Tensor  # (B, W) int64
    scores: Tensor  # (B, W) float32
    attention: Optional[Tensor]  # (B, W, S) float32, where alignments are asked for
    sizes: Tensor  # (B,) int64, tokens decided
    accepted: List[Tensor] = field(default_factory=list)  # every call's (B,) int64: tokens decided in it
    shortest: int = 0  # the least of lengths
    longest: int = 0  # the largest
    most_cached: int = 0  # the largest of cached


class Decision(NamedTuple):
    """What a call decides about the tokens after those that were decided before it."""

    steps: Tensor  # (b, m) int64, their indices in the output
    tokens: Tensor  # (b, m) int64
    lprobs: Tensor  # (b, m)
    counts: Tensor  # (b,) int64: how many of them stay, at least 1, up to the first </s>
    broken: Tensor  # (b, m) bool: the model's output is NaN
    attention: Optional[Tensor] = None  # (b, m, S)


class Call(NamedTuple):
    """What an observer is told of a call of the decoder, when the finished sentences have left ``batch``."""

    batch: Batch
    active: Tensor  # (b,) int64, the sentences that took part in it
    fed: Tensor  # (b, m) int64, the decided tokens that were fed
    proposed: Tensor  # (b, n) int64
    accepted: Tensor  # (b,) int64, tokens decided


@dataclass
class LeftToRightStatistics(Statistics):
    tokens: int = 0
    decoder_calls: int = 0  # of batches
    sentence_calls: int = 0  # calls of the decoder, of every sentence
    mask_positions: int = 0  # that were computed

    def add(self, accepted: List[int]) -> None:
        """Count a sentence: the tokens decided in each of its calls."""
        self.sentences += 1
        self.tokens += sum(accepted)
        self.sentence_calls += len(accepted)


class LeftToRightGenerator(Generator):
    """Base of the loops from left to right: ``propose`` tokens, ``decide`` which of them stay, and keep the books.

    Before a call the first n tokens of a row are decided. Nothing that was decided is asked again. What decides is
    ``SequenceGenerator``'s: the order of the changes to the log-probabilities, the limit by the padded width of the
    sources, and ``topk(2)`` as the choice, whose order among equals is not argmax's.

    Args:
        models: one, or several as an ensemble. dictionary: the target's. mask: index of ``<mask>``.
        config: the options of the generator's dataclass. options: fairseq's ``GenerationConfig``.

    Attributes:
        decoders: every model's, with ``start(encoder_out)``: a subclass sets them.
        observer: called with a ``Call`` after every call of the decoders; None: nobody.
    """

    feeds_proposals = True  # whether the caches keep the accepted ones
    bans_start = False  # whether the start symbol is never output

    def __init__(self, models, dictionary, config, options: Namespace, mask: int):
        super().__init__(models, config, options)
        self.pad, self.unk, self.eos, self.bos = dictionary.pad(), dictionary.unk(), dictionary.eos(), dictionary.bos()
        self.banned = banned_symbols(dictionary, mask, self.models, self.bans_start)
        self.rules = GreedyRules(options, self.pad, self.unk, self.eos, self.banned.unwanted)
        self.decoders: List = []
        self.observer: Optional[Callable[[Call], None]] = None

    # -- what a subclass defines ---------------------------------------------------------------------------------------

    def most_tokens(self, limit: int) -> int:
        """How many tokens a call may decide, where an output may have ``limit`` and ``</s>``."""
        raise NotImplementedError

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        """All calls for all sentences of fairseq's ``sample``, by ``decode``; ``encoded`` is every encoder's output."""
        raise NotImplementedError

    def propose(self, batch: Batch):
        """The tokens that may come next: something with ``tokens`` (b, n), for ``decide``."""
        raise NotImplementedError

    def decide(self, batch: Batch, proposal) -> Decision:
        """Which of them do, or which instead."""
        raise NotImplementedError

    def learn(self, batch: Batch, counts: List[int]) -> None:
        """Told how many tokens were decided for each row that goes on; the batch is as it was before."""

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        """Of tokens and scores (T,), on the host."""
        return greedy_hypothesis(tokens, scores, accepted, self.options)

    # -- the way of a batch --------------------------------------------------------------------------------------------

    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch, one a sentence.

        Args:
            models: as fairseq passes them; those given at the start are used.
            sample: fairseq's batch. prefix_tokens: (B, P) int64, padded, what every hypothesis begins with.
        """
        refuse_in_batch(self.name, self.options, prefix_tokens, constraints)
        source = sample["net_input"]["src_tokens"]
        with self.decoding(source.device, lean=True):
            encoded = [model.encoder.forward_torchscript(sample["net_input"]) for model in self.models]
            batch = self.translate(sample, encoded, prefix_tokens)
        return self.hypotheses(batch)  # outside, because fairseq changes them in place

    def decode(self, state, source: Tensor, encoded: List[Dict], prefix=None, active=None) -> Batch:
        """Calls of the decoders until all sentences are finished; the arguments are ``start``'s."""
        batch = self.start(state, source, encoded, prefix, active)
        while batch.active.numel():
            self.step(batch)
        return batch

    def start(self, state, source: Tensor, encoded: List[Dict], prefix=None, active=None) -> Batch:
        """Nothing decided yet.

        Args:
            state: a subclass's. source: (B, S) int64. encoded: what every model's encoder made of it.
            prefix: (B, P) int64 or None. active: (b,) int64, the sentences to decode; None: all.
        """
        sentences, width = source.shape
        limit = self.rules.limit(width, self.models)
        room = limit + 1 + self.most_tokens(limit)  # the last call may reach beyond the limit
        if active is None:
            active = torch.arange(sentences, device=source.device)
        elif active.numel():
            encoded = [model.encoder.reorder_encoder_out(out, active) for model, out in zip(self.models, encoded)]
        zeros = torch.zeros_like(active)
        aligned = self.options.print_alignment
        return Batch(
            state=state,
            active=active,
            lengths=zeros,
            cached=zeros,
            pending=active.new_full((len(active), 1), self.eos),
            limit=limit,
            caches=[decoder.start(out) for decoder, out in zip(self.decoders, encoded) if len(active)],
            prefix=prefix,
            source=source,
            tokens=source.new_full((sentences, room), self.pad),
            scores=torch.zeros(sentences, room, device=source.device),
            attention=torch.zeros(sentences, room, width, device=source.device) if aligned else None,
            sizes=source.new_zeros(sentences),
        )

    def step(self, batch: Batch) -> None:
        """One call: propose, decide, write down; finished sentences leave. The host looks once."""
        active, fed = batch.active, batch.pending
        proposal = self.propose(batch)
        decision = self.decide(batch, proposal)
        steps, tokens, counts = decision.steps, decision.tokens, decision.counts
        ended = tokens.eq(self.eos) & (steps < (batch.lengths + counts).unsqueeze(1))
        done = ended.any(1)
        counts = torch.where(done, ended.long().argmax(1) + 1, counts)
        lengths = batch.lengths + counts

        # the columns after the decided ones are written too: the next call writes over them, or nobody reads them
        here = (active.unsqueeze(1), steps)
        batch.tokens[here], batch.scores[here] = tokens, decision.lprobs.float()
        if decision.attention is not None:
            batch.attention[here] = decision.attention
        batch.sizes[active] = lengths
        batch.accepted.append(torch.zeros_like(batch.sizes).index_copy(0, active, counts))

        broken = (decision.broken & (steps < lengths.unsqueeze(1))).any(1)
        finished, nan, *numbers = torch.stack([done.long(), broken.long(), lengths, counts]).tolist()
        refuse_nan(any(nan))
        live = [row for row, over in enumerate(finished) if not over]
        lengths_now, counts_now = ([column[row] for row in live] for column in numbers)
        self.learn(batch, counts_now)
        batch.shortest, batch.longest = min(lengths_now, default=0), max(lengths_now, default=0)
        if self.feeds_proposals:
            batch.cached, batch.most_cached = lengths, batch.longest
            batch.pending = tokens.gather(1, (counts - 1).unsqueeze(1))
        else:
            batch.cached = batch.lengths + 1
            batch.most_cached = max((n - count + 1 for n, count in zip(lengths_now, counts_now)), default=0)
            batch.pending = tokens[:, : max(counts_now, default=0)]
        batch.lengths = lengths
        if len(live) < len(finished):
            self.keep(batch, torch.tensor(live, dtype=torch.long, device=active.device))
        if self.observer is not None:
            self.observer(Call(batch, active, fed, proposal.tokens, counts))

    def keep(self, batch: Batch, live: Tensor) -> None:
        """Only these rows (n,) go on."""
        for name in ("active", "lengths", "cached", "pending", "prefix"):
            value = getattr(batch, name)
            setattr(batch, name, None if value is None else value[live])
        for cache in batch.caches if live.numel() else ():
            cache.select(live)

    def mean_lprobs(self, logits: List[Tensor]) -> Tensor:
        """The ensemble's log-probabilities (..., V) from every model's logits, without what no model has learnt."""
        if self.options.temperature != 1:
            logits = [one / self.options.temperature for one in logits]
        return ensemble_mean([full(ban(one, self.banned.unlearnt)).log_softmax(-1) for one in logits])

    # -- out -----------------------------------------------------------------------------------------------------------

    def hypotheses(self, batch: Batch) -> List[List[Dict]]:
        """fairseq's hypotheses, on the host; with ``accepted``, the tokens decided in each call, and perhaps
        ``history``.
        """
        tokens, scores, sizes = (one.cpu() for one in (batch.tokens, batch.scores, batch.sizes))
        calls = torch.stack([torch.zeros_like(batch.sizes), *batch.accepted], 1).tolist()
        self.statistics.decoder_calls += len(batch.accepted)
        made = []
        for i, size in enumerate(sizes.tolist()):
            accepted = [max(count, 0) for count in calls[i] if count]
            made.append([self.hypothesis(batch, i, tokens[i, :size].clone(), scores[i, :size], accepted)])
            self.statistics.add(accepted)
        return made
