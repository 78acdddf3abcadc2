"""The base of the generators of non-autoregressive models: from fairseq's batch to fairseq's hypotheses."""

import logging
import math
from argparse import Namespace
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from nar_plugins.generators.base import Generator, banned_on_canvas, check_min_len, ensemble_mean, refuse_nan
from nar_plugins.generators.canvas.lengths import candidate_lengths, gold_lengths
from nar_plugins.generators.canvas.rescore import Rescorer
from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, hypothesis
from nar_plugins.generators.options import MODELS, SERVED, refuse, refuse_in_batch, refuse_options
from nar_plugins.models.contract import Memory, Plan
from nar_plugins.modules.best_of_rows import ban, best_of_rows, max_of_rows
from nar_plugins.modules.linear import CPU_LOGITS, CPU_ROWS
from nar_plugins.modules.precision import full

logger = logging.getLogger(__name__)

IMPOSSIBLE = -1e4  # the log-probability of a length of probability 0, as --gold-length may have: finite, to be weighted


class DecodedCanvases(NamedTuple):
    """R decoded canvases, and the N candidates of each of the B sentences among them."""

    tokens: Tensor  # (R, T) int64
    lprobs: Tensor  # (R, T) float32 log-probabilities, 0 beyond the length
    lengths: Tensor  # (R,) int64
    steps: Tensor  # (R,) int64: passes of the decoder
    candidates: Tensor  # (B, N) int64, the index of each candidate's canvas
    keep: Tensor  # (B, N) bool, False for a duplicate, or where a sentence has fewer candidates
    scores: Optional[Tensor] = None  # (R,) log-probability of the output; None: the sum of lprobs
    score_lengths: Optional[Tensor] = None  # (R,) the positions that scores is the sum over; None: lengths
    history: Optional[List[Tensor]] = None  # tokens (R, T) after each pass
    length_lprobs: Optional[Tensor] = None  # (R,) log-probability of each length, for --length-weight


class Pass(NamedTuple):
    """A decoder pass over R canvases, for an observer. After the last one they are the candidates, before --dedup."""

    tokens: Tensor  # (R, T) int64 after the pass, padded; with CTC the path, blanks included
    lprobs: Tensor  # (R, T) float32: of each token in the pass that predicted it
    predicted: Tensor  # (R, T) bool: the positions that the pass predicted
    graph: Optional[NamedTuple] = None  # what the tokens are paths through: ``ObservedGraph`` of the generator ``dag``


class CanvasGenerator(Generator):
    """Base of the generators that fill a canvas; a subclass defines ``search``.

    Args:
        models: one or more models of the contract (``models/contract.py``); several are an ensemble.
        dictionary: the target's.
        config: the options of the generator's dataclass.
        options: fairseq's ``GenerationConfig``.
        mask: index of ``<mask>``.
        rescorer: an AR model that orders the candidates, or None.

    Attributes:
        observer: called with a ``Pass`` after every pass, or None. A subclass calls it.
    """

    needs = ("encode", "canvas", "decode", "project", "max_decoder_positions")  # methods of the model that are called
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
        super().__init__(models, config, options, [] if rescorer is None else [rescorer], config.compile)
        self.eos, self.pad, self.mask = dictionary.eos(), dictionary.pad(), mask
        self.symbols, self.banned = len(dictionary), banned_on_canvas(dictionary, mask)
        self.banned_index: Optional[Tensor] = None
        self.dedup = Dedup(str(config.dedup), dictionary)
        self.rescorer = None if rescorer is None else Rescorer(*self.others, self.pad, self.eos, mask, options)
        self.observer: Optional[Callable[[Pass], None]] = None

    # -- decoding ------------------------------------------------------------------------------------------------------

    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch: for every sentence all candidates, best first.

        Args:
            models: ignored; fairseq passes the models that the generator was built with.
            sample: fairseq's batch, with ``net_input`` and, for ``--gold-length``, ``target``.
        """
        refuse_in_batch(self.name, self.options, prefix_tokens, constraints)
        source = sample["net_input"]["src_tokens"]
        for rescorer in self.others:
            rescorer.to(source.device)
        with self.decoding(source, lean=True):
            memories = [model.encode(source, sample["net_input"].get("src_lengths")) for model in self.models]
            decoded = self.search(memories, source, sample.get("target"))
            if self.config.length_weight:
                lprobs = full(self.length_lprobs(memories))[sentences_of(decoded), decoded.lengths]
                decoded = decoded._replace(length_lprobs=lprobs.clamp(min=IMPOSSIBLE))
            scores = self.scores(decoded, source)
        return self.hypotheses(decoded, source, *scores)  # outside, because fairseq changes them in place

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> DecodedCanvases:
        """Decode a batch.

        Args:
            memories: every model's. source: (B, S) int64. target: (B, T) int64, or None.
        """
        raise NotImplementedError

    def max_lengths(self, source: Tensor) -> Tensor:
        """The longest outputs, ``</s>`` counted, that ``--max-len-a/b`` allow: (B,) int64."""
        real = source.ne(self.pad).sum(1)
        return (self.options.max_len_a * real + self.options.max_len_b).long() + 1

    def lengths(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> tuple:
        """Candidate lengths (B, N) and which of them to keep (B, N)."""
        lprobs = self.length_lprobs(memories)
        refuse_nan(bool(lprobs.isnan().any()))
        longest = self.max_lengths(source)
        shortest = max(2, self.options.min_len + 1)  # fairseq's --min-len does not count </s>
        self.check_min_length(source, longest)
        if self.config.gold_length:
            return gold_lengths(self.reference_lengths(target), self.beam, lprobs.size(1), shortest)
        return candidate_lengths(lprobs, self.beam, longest, shortest)

    def length_lprobs(self, memories: List[Memory]) -> Tensor:
        """The models' log-probabilities of all lengths: (B, classes)."""
        return ensemble_mean([model.length_lprobs(memory) for model, memory in zip(self.models, memories)])

    def check_min_length(self, source: Tensor, longest: Tensor) -> None:
        """Raise where ``--min-len`` is above the model's positions, or above ``longest`` (B,) of a nonempty sentence.

        fairseq's search refuses it too, with one bound for the whole batch.
        """
        limit = min(model.max_decoder_positions() for model in self.models) - 1  # without </s>
        if self.options.min_len > limit:
            raise ValueError(
                f"--min-len {self.options.min_len} is above the {limit} tokens that the model's positions allow"
            )
        limit = int(longest.masked_fill(self.empty(source), self.options.min_len + 1).min()) - 1
        check_min_len(self.options.min_len, limit)

    def empty(self, source: Tensor) -> Tensor:
        """Which sources (B, S) have no token but ``</s>``: (B,) bool."""
        return source.ne(self.pad).sum(1).le(1)

    def reference_lengths(self, target: Optional[Tensor]) -> Tensor:
        """The lengths (B,) of the references, for ``--gold-length``."""
        if target is None:
            raise ValueError("--gold-length needs a reference: fairseq-interactive has none")
        return target.ne(self.pad).sum(1)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def best_tokens(self, features: List[Tensor]) -> tuple:
        """The most probable allowed tokens (M,) and their log-probabilities (M,), of every model's features (M, D).

        On a CPU they are computed in chunks. The probabilities are of the softmax over all V, banned symbols included.
        """
        on_cpu = features[0].device.type == "cpu"
        size = max(CPU_ROWS, CPU_LOGITS // self.symbols) if on_cpu else max(1, features[0].size(0))
        chunks = zip(*(states.split(size) for states in features))
        tokens, lprobs = zip(*(self.best_tokens_of_chunk(chunk) for chunk in chunks))
        return torch.cat(tokens), torch.cat(lprobs)

    def best_tokens_of_chunk(self, features: tuple) -> tuple:
        """``best_tokens`` without chunks."""
        logits = [full(model.project(states)) for model, states in zip(self.models, features)]
        if len(logits) == 1:  # the full log-softmax is not needed
            return best_of_rows(logits[0], self.banned_on(logits[0].device))
        lprobs, tokens = max_of_rows(ban(ensemble_mean([each.log_softmax(-1) for each in logits]), self.banned))
        return tokens, lprobs

    def banned_on(self, device: torch.device) -> Tensor:
        """``banned`` as an index, (K,) int64."""
        if self.banned_index is None or self.banned_index.device != device:
            self.banned_index = torch.tensor(self.banned, dtype=torch.long, device=device)
        return self.banned_index

    # -- hypotheses ----------------------------------------------------------------------------------------------------

    def scores(self, decoded: DecodedCanvases, source: Tensor) -> Tuple[Tensor, Tensor]:
        """What orders the canvases, and the models' own scores, (R,) each.

        With ``--length-weight 1`` a canvas's own is the log of P(T | x) P(y | x, T) for its length T (Ghazvininejad et
        al. 2019, section 2, predict both), by its length. The mean over the tokens alone, theirs, favours short ones.
        """
        model_scores = decoded.lprobs.sum(1) if decoded.scores is None else decoded.scores
        if decoded.length_lprobs is not None:
            model_scores = model_scores + self.config.length_weight * decoded.length_lprobs
        if not self.options.unnormalized:
            lengths = decoded.lengths if decoded.score_lengths is None else decoded.score_lengths
            model_scores = model_scores / lengths**self.options.lenpen
        if self.rescorer is None:
            return model_scores, model_scores
        return self.rescorer(source, decoded.tokens, decoded.lengths, sentences_of(decoded)), model_scores

    def hypotheses(
        self, decoded: DecodedCanvases, source: Tensor, scores: Tensor, model_scores: Tensor
    ) -> List[List[Dict]]:
        """Order every sentence's candidates by score; all tensors are moved to the host together."""
        candidates = decoded.candidates
        ranked = scores[candidates].masked_fill(~decoded.keep, -math.inf)
        order = ranked.argsort(dim=1, descending=True, stable=True)  # ties: the more probable length comes first
        candidates, keep = candidates.gather(1, order), decoded.keep.gather(1, order)

        empty = self.empty(source)
        candidates, keep, empty, model_scores, scores = (
            tensor.cpu() for tensor in (candidates, keep, empty, model_scores, scores)
        )
        refuse_nan(bool(model_scores.isnan().any()))
        refuse_nan(bool(scores.isnan().any()), "the rescorer's")
        decoded = decoded._replace(
            **{name: getattr(decoded, name).cpu() for name in ("tokens", "lprobs", "lengths", "steps")}
        )
        if decoded.history is not None:
            decoded = decoded._replace(history=[tokens.cpu() for tokens in decoded.history])
        return [
            [empty_hypothesis(self.eos)]
            if empty[b]
            else [
                self.hypothesis(decoded, canvas, kept, float(scores[canvas]), float(model_scores[canvas]))
                for canvas, kept in self.alternatives(decoded, candidates[b][keep[b]].tolist())
            ]
            for b in range(keep.size(0))
        ]

    def alternatives(self, decoded: DecodedCanvases, canvases: List[int]) -> List[tuple]:
        """The canvases of a sentence with distinct texts, each with the indices of its tokens in the output.

        Two canvases have the same text where they differ only in a ``</s>`` inside or in repetitions that ``--dedup``
        drops. The best one stays.

        Args:
            canvases: their indices, best first.
        """
        texts, distinct = set(), []
        for canvas in canvases:
            tokens = decoded.tokens[canvas, : int(decoded.lengths[canvas])].tolist()
            kept = self.dedup.keep(tokens)
            text = tuple(tokens[i] for i in kept if tokens[i] != self.eos)
            if text not in texts:
                distinct.append((canvas, kept))
            texts.add(text)
        return distinct

    def hypothesis(
        self, decoded: DecodedCanvases, canvas: int, kept: List[int], score: float, model_score: float
    ) -> Dict:
        """The hypothesis of the tokens ``kept`` of a canvas; with both scores after rescoring, and with ``history`` for
        ``--retain-iter-history``.
        """
        length, steps = int(decoded.lengths[canvas]), int(decoded.steps[canvas])
        extra = {}
        if self.rescorer is not None:
            extra.update(model_score=model_score, rescorer_score=score)
        if decoded.history is not None:
            extra["history"] = [{"tokens": tokens[canvas, :length]} for tokens in decoded.history[:steps]]
        return hypothesis(decoded.tokens[canvas, kept], decoded.lprobs[canvas, kept], score, steps, **extra)


def canvas_indices(sentences: int, candidates: int, device) -> Tensor:
    """The canvases of every sentence's candidates (B, N) int64, where those of a sentence are next to each other."""
    return torch.arange(sentences * candidates, device=device).view(sentences, candidates)


def sentences_of(decoded: DecodedCanvases) -> Tensor:
    """The sentence (R,) int64 of every canvas."""
    candidates = decoded.candidates
    numbers = torch.arange(candidates.size(0), device=candidates.device).unsqueeze(1).expand_as(candidates)
    return torch.zeros_like(decoded.lengths).scatter(0, candidates.flatten(), numbers.flatten())


def plan_lengths(lengths: Tensor) -> Plan:
    """The plan of N canvases a sentence, next to each other: lengths (B, N)."""
    sentences = torch.arange(lengths.size(0), device=lengths.device).repeat_interleave(lengths.size(1))
    return Plan(sentences, lengths.flatten())


def check_lengths(models) -> None:
    """Raise for an ensemble whose models predict different ranges of lengths: their probabilities have no mean.

    The form of the length head may differ from model to model.
    """
    classes = {model.length_classes - 1 for model in models if model.predicts == "lengths"}
    if len(classes) > 1:
        sizes = " and ".join(str(size) for size in sorted(classes))
        raise ValueError(
            f"an ensemble needs models of the same --max-target-positions: these predict lengths up to {sizes}"
        )
