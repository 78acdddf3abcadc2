"""What the loops of the non-autoregressive models share: from fairseq's batch to fairseq's hypotheses."""

import logging
import math
from argparse import Namespace
from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from nar_plugins.generators.base import Generator, ban, banned_on_canvas, check_min_len, ensemble_mean, refuse_nan
from nar_plugins.generators.canvas.lengths import candidate_lengths, gold_lengths
from nar_plugins.generators.canvas.rescore import Rescorer
from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, hypothesis
from nar_plugins.generators.options import MODELS, SERVED, refuse, refuse_in_batch, refuse_options
from nar_plugins.models.contract import Memory, Plan
from nar_plugins.modules.linear import CPU_ROWS
from nar_plugins.modules.precision import full

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a loop found: R decoded rows, and which of them are the N candidates of each of the B sentences."""

    tokens: Tensor  # (R, T) int64
    lprobs: Tensor  # (R, T) float32 log-probabilities, 0 beyond the length
    lengths: Tensor  # (R,) int64
    steps: Tensor  # (R,) int64: passes of the decoder
    rows: Tensor  # (B, N) int64, which row each candidate is
    keep: Tensor  # (B, N) bool, False for what is no candidate of its own
    scores: Optional[Tensor] = None  # (R,) log-probability of the whole row; None: the sum of lprobs
    score_lengths: Optional[Tensor] = None  # (R,) over how many positions; None: lengths
    history: Optional[List[Tensor]] = None  # tokens (R, T) after each pass


class ParallelGenerator(Generator):
    """Base of the parallel decoding loops; a subclass defines ``search``.

    Args:
        models: one or more models of the contract (``models/contract.py``); several are an ensemble.
        dictionary: the target's.
        config: the options of the generator's dataclass.
        options: fairseq's ``GenerationConfig``.
        mask: index of ``<mask>``.
        rescorer: an AR model that orders the candidates, or None.
    """

    needs = ("encode", "canvas", "decode", "project", "max_decoder_positions")  # the methods that are called of a model
    honoured = SERVED["canvas"]
    default_length_beam = 1

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        refuse_options(self.name, options, config, rescorer, self.honoured)
        self.beam = self.default_length_beam if config.length_beam is None else config.length_beam
        facts = dict(predicts=models[0].predicts, blank=models[0].blank, beams=self.beam, rescored=rescorer is not None)
        bases = [vars(base)["name"] for base in type(self).__mro__ if "name" in vars(base)]
        refuse(MODELS, self.name, options, config, bases=bases, **facts)
        if options.beam == 5:
            logger.info(f"{self.name} has no beam: --beam is not used; --length-beam is {self.beam}")
        check_lengths(models)
        super().__init__(models, config, options)
        self.eos, self.pad, self.mask = dictionary.eos(), dictionary.pad(), mask
        self.banned = banned_on_canvas(dictionary, mask)
        self.dedup = Dedup(str(config.dedup), dictionary)
        self.rescorer = None if rescorer is None else Rescorer(rescorer, self.pad, self.eos, mask, options)

    # -- the way of a batch --------------------------------------------------------------------------------------------

    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch: for every sentence all candidates, best first.

        Args:
            models: as fairseq passes them; those given at the start are used.
            sample: fairseq's batch, with ``net_input`` and, for ``--gold-length``, ``target``.
        """
        refuse_in_batch(self.name, self.options, prefix_tokens, constraints)
        source = sample["net_input"]["src_tokens"]
        others = [] if self.rescorer is None else [self.rescorer.model]
        with self.decoding(source.device, *others):
            memories = [model.encode(source, sample["net_input"].get("src_lengths")) for model in self.models]
            found = self.search(memories, source, sample.get("target"))
            return self.finish(found, source)

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> Found:
        """The loop.

        Args:
            memories: every model's, of the batch. source: (B, S) int64. target: (B, T) int64, where there is one.
        """
        raise NotImplementedError

    def longest(self, source: Tensor) -> Tensor:
        """The most tokens, with ``</s>``, that ``--max-len-a/b`` allow: (B,) int64."""
        real = source.ne(self.pad).sum(1)
        return (self.options.max_len_a * real + self.options.max_len_b).long() + 1

    def lengths(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> tuple:
        """Candidate lengths (B, N) and which of them to keep (B, N)."""
        lprobs = ensemble_mean([model.length_lprobs(memory) for model, memory in zip(self.models, memories)])
        refuse_nan(bool(lprobs.isnan().any()))
        longest = self.longest(source)
        shortest = max(2, self.options.min_len + 1)  # fairseq's --min-len does not count </s>
        self.check_shortest(source, longest)
        if self.config.gold_length:
            return gold_lengths(self.lengths_of(target), self.beam, lprobs.size(1), shortest)
        return candidate_lengths(lprobs, self.beam, longest, shortest)

    def check_shortest(self, source: Tensor, longest: Tensor) -> None:
        """Raise where ``--min-len`` is above the positions, or above what ``longest`` (B,) allows a sentence that is
        not empty.

        fairseq's search refuses it, too, with one bound for the whole batch.
        """
        limit = min(model.max_decoder_positions() for model in self.models) - 1  # without </s>
        if self.options.min_len > limit:
            raise ValueError(
                f"--min-len {self.options.min_len} is above the {limit} tokens that the model's positions allow"
            )
        limit = int(longest.masked_fill(self.empty(source), self.options.min_len + 1).min()) - 1
        check_min_len(self.options.min_len, limit)

    def empty(self, source: Tensor) -> Tensor:
        """Which sources (B, S) hold no word: (B,) bool."""
        return source.ne(self.pad).sum(1).le(1)

    def lengths_of(self, target: Optional[Tensor]) -> Tensor:
        """The reference's lengths (B,), for ``--gold-length``."""
        if target is None:
            raise ValueError("--gold-length needs a reference: fairseq-interactive has none")
        return target.ne(self.pad).sum(1)

    # -- words ---------------------------------------------------------------------------------------------------------

    def words(self, features: List[Tensor]) -> tuple:
        """Features (M, D) of every model -> best allowed words (M,) and their log-probabilities (M,), in chunks on a
        CPU.
        """
        rows = CPU_ROWS if features[0].device.type == "cpu" else max(1, features[0].size(0))
        words, lprobs = zip(*(self.best_words(chunk) for chunk in zip(*(one.split(rows) for one in features))))
        return torch.cat(words), torch.cat(lprobs)

    def best_words(self, features: tuple) -> tuple:
        """``words`` of one chunk; log-probabilities are among all words, the banned ones counted."""
        logits = [full(m.project(one)) for m, one in zip(self.models, features)]
        if len(logits) == 1:  # no need of all log-probabilities
            scores, normaliser = logits[0], logits[0].logsumexp(-1)
        else:
            scores, normaliser = ensemble_mean([one.log_softmax(-1) for one in logits]), 0
        best, words = ban(scores, self.banned).max(-1)
        return words, best - normaliser

    # -- out -----------------------------------------------------------------------------------------------------------

    def finish(self, found: Found, source: Tensor) -> List[List[Dict]]:
        """Order every sentence's candidates by score and hand them to the host in one go."""
        own = found.lprobs.sum(1) if found.scores is None else found.scores
        if not self.options.unnormalized:
            own = own / (found.lengths if found.score_lengths is None else found.score_lengths) ** self.options.lenpen
        scores = own
        if self.rescorer is not None:
            numbers = torch.arange(found.rows.size(0), device=source.device).unsqueeze(1).expand_as(found.rows)
            sentences = torch.zeros_like(found.lengths).scatter(0, found.rows.flatten(), numbers.flatten())
            scores = self.rescorer(source, found.tokens, found.lengths, sentences)
        ordered = scores[found.rows].masked_fill(~found.keep, -math.inf)
        order = ordered.argsort(dim=1, descending=True, stable=True)  # ties: the more probable length comes first
        rows, keep = found.rows.gather(1, order), found.keep.gather(1, order)

        rows, keep, empty, own, scores = (x.cpu() for x in (rows, keep, self.empty(source), own, scores))
        refuse_nan(bool(own.isnan().any()))
        refuse_nan(bool(scores.isnan().any()), "the rescorer's")
        found = found._replace(
            **{name: getattr(found, name).cpu() for name in ("tokens", "lprobs", "lengths", "steps")}
        )
        if found.history is not None:
            found = found._replace(history=[past.cpu() for past in found.history])
        return [
            [empty_hypothesis(self.eos)]
            if empty[b]
            else [
                self.hypothesis(found, row, kept, float(scores[row]), float(own[row]))
                for row, kept in self.alternatives(found, rows[b][keep[b]].tolist())
            ]
            for b in range(keep.size(0))
        ]

    def alternatives(self, found: Found, rows: List[int]) -> List[tuple]:
        """Of a sentence's rows, best first, those that no better one reads like, each with the indices of its tokens
        that stay.

        Canvases may differ in what nobody reads: a ``</s>`` inside, or a repetition that ``--dedup`` drops.
        """
        texts, kept = set(), []
        for row in rows:
            tokens = found.tokens[row, : int(found.lengths[row])].tolist()
            stay = self.dedup.keep(tokens)
            text = tuple(tokens[i] for i in stay if tokens[i] != self.eos)
            if text not in texts:
                kept.append((row, stay))
            texts.add(text)
        return kept

    def hypothesis(self, found: Found, row: int, kept: List[int], score: float, own: float) -> Dict:
        """The hypothesis of the tokens ``kept`` of a row; after rescoring with both scores, perhaps with
        ``history``.
        """
        length, steps = int(found.lengths[row]), int(found.steps[row])
        extra = {}
        if self.rescorer is not None:
            extra.update(model_score=own, rescorer_score=score)
        if found.history is not None:
            extra["history"] = [{"tokens": past[row, :length]} for past in found.history[:steps]]
        return hypothesis(found.tokens[row, kept], found.lprobs[row, kept], score, steps, **extra)


def rectangle(sentences: int, candidates: int, device) -> Tensor:
    """Row numbers (B, N) where the candidates of a sentence stand next to each other."""
    return torch.arange(sentences * candidates, device=device).view(sentences, candidates)


def plan_lengths(lengths: Tensor) -> Plan:
    """The plan of N canvases a sentence, next to each other: lengths (B, N)."""
    sentences = torch.arange(lengths.size(0), device=lengths.device).repeat_interleave(lengths.size(1))
    return Plan(sentences, lengths.flatten())


def check_lengths(models) -> None:
    """Raise for an ensemble whose models do not predict the same lengths: their probabilities have no mean.

    The form of the length head may differ from model to model, what it says is the same.
    """
    classes = {model.length_classes - 1 for model in models if model.predicts == "lengths"}
    if len(classes) > 1:
        sizes = " and ".join(str(size) for size in sorted(classes))
        raise ValueError(
            f"an ensemble needs models of the same --max-target-positions: these predict lengths up to {sizes}"
        )
