"""The loop of all generators that decode from left to right, one or several tokens a decoder call."""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.generators.base import Generator, Statistics, banned_symbols, ensemble_mean, refuse_nan
from nar_plugins.generators.hypothesis import greedy_hypothesis
from nar_plugins.generators.left_to_right.logits_processor import GreedyLogitsProcessor
from nar_plugins.generators.options import refuse_in_batch
from nar_plugins.modules.best_of_rows import ban
from nar_plugins.modules.fast.encoder_layers import EncoderLayers, encoder_layers
from nar_plugins.modules.precision import full


@dataclass
class Batch:
    """A batch of B sentences; b of them are active, that is, not finished."""

    state: Any  # a subclass's
    active: Tensor  # (b,) int64, the active sentences
    lengths: Tensor  # (b,) int64, tokens decided
    cached: Tensor  # (b,) int64, inputs in the caches; the first input is the start token
    pending: Tensor  # (b, m) int64, the inputs after those, up to the last decided token, padded
    limit: int  # the last index of an output, at which only </s> is allowed
    caches: List  # every model's
    prefix: Optional[Tensor]  # (b, P) int64, padded, the forced beginning of the outputs
    source: Tensor  # (B, S) int64
    tokens: Tensor  # (B, W) int64
    scores: Tensor  # (B, W) float32
    attention: Optional[Tensor]  # (B, W, S) float32, where alignments are asked for
    sizes: Tensor  # (B,) int64, tokens decided
    accepted: List[Tensor] = field(default_factory=list)  # of every call: (B,) int64, the tokens decided in it
    min_length: int = 0  # of lengths
    max_length: int = 0
    max_cached: int = 0  # of cached


class Decision(NamedTuple):
    """The outcome of a decoder call."""

    steps: Tensor  # (b, m) int64, their indices in the output
    tokens: Tensor  # (b, m) int64
    lprobs: Tensor  # (b, m)
    counts: Tensor  # (b,) int64: how many of them are decided, at least 1; the loop cuts at the first </s>
    nan: Optional[Tensor]  # (b, m) bool: the model's output is NaN; None: nowhere
    attention: Optional[Tensor] = None  # (b, m, S)


class Call(NamedTuple):
    """A decoder call, for an observer; the finished sentences have left ``batch``."""

    batch: Batch
    active: Tensor  # (b,) int64, the sentences that were active in the call
    fed: Tensor  # (b, m) int64, the decided tokens that were fed
    proposed: Tensor  # (b, n) int64
    accepted: Tensor  # (b,) int64, tokens decided


@dataclass
class LeftToRightStatistics(Statistics):
    tokens: int = 0
    decoder_calls: int = 0  # of batches
    sentence_calls: int = 0  # the sum over sentences of the calls that they were active in
    mask_positions: int = 0  # mask tokens that were fed

    def add(self, accepted: List[int]) -> None:
        """Count a sentence: the tokens decided in each of its calls."""
        self.sentences += 1
        self.tokens += sum(accepted)
        self.sentence_calls += len(accepted)


class LeftToRightGenerator(Generator):
    """Base of the left-to-right loops: ``propose`` tokens, ``decide`` how many of them to keep, update the batch.

    Decided tokens never change. The decision follows ``SequenceGenerator``: the order of the logits processing, the
    limit by the padded width of the sources, and the choice by ``topk(2)``, which breaks ties differently from argmax.

    Args:
        models: one, or several as an ensemble. dictionary: the target's. mask: index of ``<mask>``.
        config: the options of the generator's dataclass. options: fairseq's ``GenerationConfig``.

    Attributes:
        decoders: every model's, with ``start(encoder_out)``: a subclass sets them.
        observer: called with a ``Call`` after every call of the decoders, or None.
    """

    feeds_proposals = True  # whether the proposals are inputs, so that the caches hold the accepted ones
    bans_start = False  # whether the start symbol is never output

    def __init__(self, models, dictionary, config, options: Namespace, mask: int):
        super().__init__(models, config, options)
        self.pad, self.unk, self.eos, self.bos = dictionary.pad(), dictionary.unk(), dictionary.eos(), dictionary.bos()
        self.banned = banned_symbols(dictionary, mask, self.models, self.bans_start)
        self.processor = GreedyLogitsProcessor(options, self.pad, self.unk, self.eos, self.banned.unwanted)
        self.decoders: List = []
        self.encoders: List[Optional[EncoderLayers]] = [None] * len(self.models)  # in the fast form
        self.observer: Optional[Callable[[Call], None]] = None

    # -- what a subclass defines ---------------------------------------------------------------------------------------

    def max_tokens(self, limit: int) -> int:
        """The most tokens that a call may decide, where an output has at most ``limit`` and ``</s>``."""
        raise NotImplementedError

    def translate(self, sample: Dict, encoded: List[Dict], prefix: Optional[Tensor]) -> Batch:
        """Decode fairseq's ``sample`` by ``decode``; ``encoded`` is every encoder's output."""
        raise NotImplementedError

    def propose(self, batch: Batch):
        """The proposals for the next tokens: an object with ``tokens`` (b, n), for ``decide``."""
        raise NotImplementedError

    def decide(self, batch: Batch, proposal) -> Decision:
        """The next tokens: accepted proposals, or others in their place."""
        raise NotImplementedError

    def update_policy(self, batch: Batch, counts: List[int]) -> None:
        """Called before the batch changes, with the number of tokens decided for each unfinished sentence."""

    def hypothesis(self, batch: Batch, sentence: int, tokens: Tensor, scores: Tensor, accepted: List[int]) -> Dict:
        """The hypothesis of a sentence, from tokens and scores (T,) on the host."""
        return greedy_hypothesis(tokens, scores, accepted, self.options)

    # -- the way of a batch --------------------------------------------------------------------------------------------

    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch, one a sentence.

        Args:
            models: ignored; fairseq passes the models that the generator was built with.
            sample: fairseq's batch. prefix_tokens: (B, P) int64, padded, the forced beginning of every hypothesis.
        """
        refuse_in_batch(self.name, self.options, prefix_tokens, constraints)
        source = sample["net_input"]["src_tokens"]
        with self.decoding(source, lean=True):
            encoded = self.encode(sample["net_input"])
            batch = self.translate(sample, encoded, prefix_tokens)
        return self.hypotheses(batch)  # outside, because fairseq changes them in place

    def encode(self, net_input: Dict) -> List[Dict]:
        """Every encoder's output, in fairseq's form, for fairseq's ``net_input``."""
        encoders = [model.encoder for model in self.models]
        self.encoders = [encoder_layers(encoder, before) for encoder, before in zip(encoders, self.encoders)]
        return [
            encoder.forward_torchscript(net_input) if fast is None else fast(net_input["src_tokens"])
            for encoder, fast in zip(encoders, self.encoders)
        ]

    def decode(self, state, source: Tensor, encoded: List[Dict], prefix=None, active=None) -> Batch:
        """Calls of the decoders until all sentences are finished; the arguments are ``start``'s."""
        batch = self.start(state, source, encoded, prefix, active)
        while batch.active.numel():
            self.step(batch)
        return batch

    def start(self, state, source: Tensor, encoded: List[Dict], prefix=None, active=None) -> Batch:
        """The batch before the first call.

        Args:
            state: a subclass's. source: (B, S) int64. encoded: every encoder's output.
            prefix: (B, P) int64 or None. active: (b,) int64, the sentences to decode; None: all.
        """
        sentences, width = source.shape
        limit = self.processor.limit(width, self.models)
        room = limit + 1 + self.max_tokens(limit)  # the last call may reach beyond the limit
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
        """One call: propose, decide, store; finished sentences leave. The host reads from the device once."""
        active, fed = batch.active, batch.pending
        proposal = self.propose(batch)
        decision = self.decide(batch, proposal)
        steps, tokens, counts = decision.steps, decision.tokens, decision.counts
        ended = tokens.eq(self.eos) & (steps < (batch.lengths + counts).unsqueeze(1))
        done = ended.any(1)
        counts = torch.where(done, ended.long().argmax(1) + 1, counts)
        lengths = batch.lengths + counts

        # columns after the decided ones are written too: the next call overwrites them, or they are beyond the size
        index = (active.unsqueeze(1), steps)
        batch.tokens[index], batch.scores[index] = tokens, decision.lprobs.float()
        if decision.attention is not None:
            batch.attention[index] = decision.attention
        batch.sizes.index_copy_(0, active, lengths)
        batch.accepted.append(torch.zeros_like(batch.sizes).index_copy(0, active, counts))

        read = [done.long(), lengths, counts]
        if decision.nan is not None:
            read.append((decision.nan & (steps < lengths.unsqueeze(1))).any(1).long())
        finished, *numbers = torch.stack(read).tolist()
        refuse_nan(len(numbers) > 2 and any(numbers[2]))
        unfinished = [i for i, end in enumerate(finished) if not end]
        host_lengths, host_counts = ([numbers_of[i] for i in unfinished] for numbers_of in numbers[:2])
        self.update_policy(batch, host_counts)
        batch.min_length, batch.max_length = min(host_lengths, default=0), max(host_lengths, default=0)
        if self.feeds_proposals:
            batch.cached, batch.max_cached = lengths, batch.max_length
            batch.pending = tokens.gather(1, (counts - 1).unsqueeze(1))
        else:
            batch.cached = batch.lengths + 1
            batch.max_cached = max((n - count + 1 for n, count in zip(host_lengths, host_counts)), default=0)
            batch.pending = tokens[:, : max(host_counts, default=0)]
        batch.lengths = lengths
        if len(unfinished) < len(finished):
            self.drop_finished(batch, torch.tensor(unfinished, dtype=torch.long, device=active.device))
        if self.observer is not None:
            self.observer(Call(batch, active, fed, proposal.tokens, counts))

    def drop_finished(self, batch: Batch, unfinished: Tensor) -> None:
        """Keep the unfinished ones (n,) of the active sentences."""
        for name in ("active", "lengths", "cached", "pending", "prefix"):
            value = getattr(batch, name)
            setattr(batch, name, None if value is None else value[unfinished])
        for cache in batch.caches if unfinished.numel() else ():
            cache.select(unfinished)

    def mean_lprobs(self, logits: List[Tensor]) -> Tensor:
        """The ensemble's log-probabilities (..., V) from every model's logits; unlearnt symbols get none."""
        if self.options.temperature != 1:
            logits = [model_logits / self.options.temperature for model_logits in logits]
        return ensemble_mean([full(ban(each, self.banned.unlearnt)).log_softmax(-1) for each in logits])

    # -- hypotheses ----------------------------------------------------------------------------------------------------

    def hypotheses(self, batch: Batch) -> List[List[Dict]]:
        """fairseq's hypotheses on the host, with ``accepted``, the tokens decided in each call, and for
        ``--retain-iter-history`` with ``history``.
        """
        tokens, scores, sizes = (tensor.cpu() for tensor in (batch.tokens, batch.scores, batch.sizes))
        calls = torch.stack([torch.zeros_like(batch.sizes), *batch.accepted], 1).tolist()
        self.statistics.decoder_calls += len(batch.accepted)
        results = []
        for i, size in enumerate(sizes.tolist()):
            accepted = [max(count, 0) for count in calls[i] if count]
            results.append([self.hypothesis(batch, i, tokens[i, :size].clone(), scores[i, :size], accepted)])
            self.statistics.add(accepted)
        return results
