"""Mask-Predict decoding (Ghazvininejad et al. 2019, sections 3.2 and 3.3)."""
import logging
import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.data.canvas import SCHEDULES, candidate_lengths, gold_lengths, remask_count
from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, hypothesis
from nar_plugins.generators.registry import SharedGeneratorConfig, refuse_unserved, register_generator
from nar_plugins.modules.linear import fast_linear
from nar_plugins.modules.precision import full

logger = logging.getLogger(__name__)

CPU_ROWS = 64  # rows of logits made and reduced at a time on a CPU, so that they stay in its cache


@dataclass
class MaskPredictConfig(SharedGeneratorConfig):
    iterations: int = field(default=10, metadata={"help": "passes of the decoder, the first one counted"})
    schedule: ChoiceEnum(list(SCHEDULES)) = field(
        default="linear",
        metadata={
            "help": "how many positions are masked again: linear (the paper), cosine, or confidence: of linear's positions "
            "those below --confidence-threshold, and a sentence without any is done"
        },
    )
    confidence_threshold: float = field(
        default=0.9, metadata={"help": "--schedule confidence: a token at least this probable is not masked again"}
    )


class Candidates(NamedTuple):
    """The canvases under work, N a sentence, sentence-major: rows R = B*N, T wide."""

    tokens: Tensor  # (R, T) int64
    lprobs: Tensor  # (R, T) float32: of each token in the pass that wrote it; +inf beyond the length, never chosen
    lengths: Tensor  # (R,) int64
    steps: Tensor  # (R,) int64: passes so far
    padding: Optional[Tensor]  # (R, T) bool, True beyond the length; None where all are T long


@register_generator("mask_predict", dataclass=MaskPredictConfig)
class MaskPredictGenerator:
    """Decodes ``cmlm`` checkpoints, one or an ensemble.

    Every pass projects to the vocabulary, and computes the last layer for, only the positions that are masked; the
    encoder's keys and values stand once a sentence, however many lengths are tried. Within a pass nothing is read back by
    the host; ``confidence`` reads back once after each, to let finished sentences leave the batch.

    Args:
        models: one or more models with the hooks of ``NarModel``.
        dictionary: the target's.
        config: the options of ``MaskPredictConfig``.
        options: fairseq's ``GenerationConfig``.
        mask: index of ``<mask>``.
    """

    honoured = {"lenpen", "unnormalized", "max_len_a", "max_len_b", "min_len"}

    def __init__(self, models, dictionary, config, options: Namespace, mask: int):
        refuse_unserved(options, self.name, self.honoured)
        self.beam = 5 if config.length_beam is None else config.length_beam
        if config.iterations < 1:
            raise ValueError(f"--iterations {config.iterations}: at least one pass of the decoder is needed")
        if self.beam < 1:
            raise ValueError(f"--length-beam {self.beam}: at least one length must be tried")
        if options.beam == 5:
            logger.info(f"mask_predict has no beam: --beam is not used; --length-beam is {self.beam}")
        self.models, self.config, self.options = list(models), config, options
        self.eos, self.pad, self.mask = dictionary.eos(), dictionary.pad(), mask
        self.banned = torch.tensor(sorted({dictionary.pad(), dictionary.bos(), mask} - {dictionary.eos()}))
        self.dedup = Dedup(str(config.dedup), dictionary)
        for model in self.models:
            model.eval()

    # -- the way of a batch --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, models, sample: Dict, prefix_tokens=None, constraints=None) -> List[List[Dict]]:
        """fairseq's hypotheses for a batch: for every sentence all candidates, best first.

        Args:
            models: as fairseq passes them; those given at the start are used.
            sample: fairseq's batch, with ``net_input`` and, for ``--gold-length``, ``target``.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("mask_predict takes no prefix and no constraints: leave out --prefix-size and --constraints")
        source = sample["net_input"]["src_tokens"]
        dtype = getattr(torch, str(self.config.decode_dtype))
        with fast_linear(self.models, dtype), torch.autocast(source.device.type, dtype, enabled=dtype != torch.float32):
            encoded = [model.encode(source, sample["net_input"].get("src_lengths")) for model in self.models]
            lengths, keep = self.lengths(encoded, source, sample.get("target"))
            memories = [model.decoder.memory(out) for model, out in zip(self.models, encoded)]
            candidates, history = self.decode(self.start(encoded, lengths), memories, lengths.size(1))
        return self.finish(candidates, keep, source, history)

    def lengths(self, encoded: List[Dict], source: Tensor, target: Optional[Tensor]) -> tuple:
        """Candidate lengths (B, N) and which of them to keep (B, N)."""
        lprobs = torch.stack([m.length_lprobs(out) for m, out in zip(self.models, encoded)])
        lprobs = lprobs.logsumexp(0) - math.log(len(self.models))
        shortest = max(2, self.options.min_len + 1)  # fairseq's --min-len does not count </s>
        if self.config.gold_length:
            if target is None:
                raise ValueError("--gold-length needs a reference: fairseq-interactive has none")
            return gold_lengths(target.ne(self.pad).sum(1), self.beam, lprobs.size(1), shortest)
        real = source.ne(self.pad).sum(1)
        longest = (self.options.max_len_a * real + self.options.max_len_b).long() + 1
        return candidate_lengths(lprobs, self.beam, longest, shortest)

    def start(self, encoded: List[Dict], lengths: Tensor) -> Candidates:
        """Blank canvases for lengths (B, N)."""
        tokens = self.models[0].initial_canvas(encoded[0], lengths)
        lengths = lengths.flatten()
        padding = tokens.eq(self.pad)
        lprobs = torch.zeros(tokens.shape, device=tokens.device).masked_fill(padding, float("inf"))
        steps = torch.zeros_like(lengths)
        return Candidates(tokens, lprobs, lengths, steps, padding if bool(padding.any()) else None)

    def decode(self, now: Candidates, memories: List, beam: int) -> tuple:
        """All passes; the candidates and, with ``--retain-iter-history``, the tokens (R, T) after each pass."""
        history = []
        passes, schedule = self.config.iterations, str(self.config.schedule)
        widest = torch.tensor(now.tokens.size(1))
        now = self.fill(now, memories, picked=None, chosen=now.tokens.eq(self.mask))
        for done in range(1, passes):
            history.append(now.tokens)
            count = remask_count(now.lengths, done, passes, schedule)
            width = int(remask_count(widest, done, passes, schedule))  # on the host: no need to ask the device
            picked = now.lprobs.argsort(dim=1, stable=True)[:, :width]
            chosen = torch.arange(width, device=count.device) < count.unsqueeze(1)
            if schedule == "confidence":
                chosen &= now.lprobs.gather(1, picked) < self.threshold()
                sentences = chosen.view(-1, beam * width).any(1).nonzero().squeeze(1)  # the one look of the host
                if sentences.numel() == 0:
                    break
                now = self.fill_some(now, memories, picked, chosen, sentences, beam)
            else:
                now = self.fill(now, memories, picked, chosen)
        history.append(now.tokens)
        return now, history if self.options.retain_iter_history else None

    # -- one pass --------------------------------------------------------------------------------------------------

    def fill(self, now: Candidates, memories: List, picked: Optional[Tensor], chosen: Tensor) -> Candidates:
        """Mask the chosen ones of the picked positions and predict them; all other tokens keep value and probability.

        Args:
            picked: (R, n) int64 positions, or None for all.
            chosen: (R, n) bool, which of them really are masked (rows differ in how many).
        """
        tokens = now.tokens
        if picked is not None:
            old = tokens.gather(1, picked)
            tokens = tokens.scatter(1, picked, torch.where(chosen, self.mask, old))
        words, lprobs = self.predict(tokens, memories, now.padding, picked)
        if picked is None:
            tokens, lprobs = torch.where(chosen, words, tokens), torch.where(chosen, lprobs, now.lprobs)
        else:
            tokens = tokens.scatter(1, picked, torch.where(chosen, words, old))
            lprobs = now.lprobs.scatter(1, picked, torch.where(chosen, lprobs, now.lprobs.gather(1, picked)))
        return now._replace(tokens=tokens, lprobs=lprobs, steps=now.steps + chosen.any(1))

    def predict(self, tokens: Tensor, memories: List, padding: Optional[Tensor], picked: Optional[Tensor]) -> tuple:
        """The best allowed word at every picked position and its log-probability among all words: (R, n) each."""
        features = [m.decoder(tokens, memory, padding, picked) for m, memory in zip(self.models, memories)]
        shape = features[0].shape[:2]
        rows = CPU_ROWS if tokens.device.type == "cpu" else shape.numel()
        chunks = zip(*(one.flatten(0, 1).split(rows) for one in features))
        words, lprobs = zip(*(self.best_words(chunk) for chunk in chunks))
        return torch.cat(words).view(shape), torch.cat(lprobs).view(shape)

    def best_words(self, features: tuple) -> tuple:
        """Features (M, D) of every model -> best allowed words (M,) and their log-probabilities (M,)."""
        logits = [full(m.decoder.output_layer(one)) for m, one in zip(self.models, features)]
        if len(logits) == 1:
            scores, normaliser = logits[0], logits[0].logsumexp(-1)
        else:  # the mean of the models' probabilities
            scores = torch.stack([one.log_softmax(-1) for one in logits]).logsumexp(0)
            normaliser = math.log(len(logits))
        scores[:, self.banned.to(scores.device)] = -math.inf
        best, words = scores.max(-1)
        return words, best - normaliser

    # -- the confidence schedule -----------------------------------------------------------------------------------

    def threshold(self) -> float:
        """``--confidence-threshold`` as a log-probability."""
        value = self.config.confidence_threshold
        return math.log(value) if value > 0 else -math.inf

    def fill_some(self, now: Candidates, memories: List, picked, chosen, sentences: Tensor, beam: int) -> Candidates:
        """``fill`` for some sentences (n,), all their candidates; the others stay as they are."""
        if sentences.numel() * beam == now.tokens.size(0):
            return self.fill(now, memories, picked, chosen)
        rows = (sentences.unsqueeze(1) * beam + torch.arange(beam, device=sentences.device)).flatten()
        part = Candidates(*(None if part is None else part[rows] for part in now))
        part = self.fill(part, [memory.select(sentences) for memory in memories], picked[rows], chosen[rows])
        return Candidates(*(None if new is None else old.index_copy(0, rows, new) for old, new in zip(now, part)))

    # -- out -----------------------------------------------------------------------------------------------------------

    def finish(self, now: Candidates, keep: Tensor, source: Tensor, history: Optional[List[Tensor]]) -> List[List[Dict]]:
        """Order every sentence's candidates by score and hand them to the host in one go."""
        real = now.lprobs.masked_fill(now.lprobs.eq(float("inf")), 0)
        score = real.sum(1)
        if not self.options.unnormalized:
            score = score / now.lengths**self.options.lenpen
        score = score.view(keep.shape).masked_fill(~keep, -float("inf"))
        order = score.argsort(dim=1, descending=True, stable=True)  # ties: the more probable length comes first
        rows = order + torch.arange(keep.size(0), device=order.device).unsqueeze(1) * keep.size(1)

        empty = source.ne(self.pad).sum(1).le(1)
        order, rows, keep, score, empty = (x.cpu() for x in (order, rows, keep, score, empty))
        tokens, lprobs, lengths, steps = (x.cpu() for x in (now.tokens, real, now.lengths, now.steps))
        history = None if history is None else [x.cpu() for x in history]

        out = []
        for b in range(keep.size(0)):
            if empty[b]:
                out.append([empty_hypothesis(self.eos)])
                continue
            out.append([
                self.hypothesis(int(row), float(score[b, column]), tokens, lprobs, lengths, steps, history)
                for column, row in zip(order[b], rows[b])
                if keep[b, column]
            ])
        return out

    def hypothesis(self, row: int, score: float, tokens, lprobs, lengths, steps, history) -> Dict:
        """The hypothesis of one row, with ``history`` where it was kept."""
        length = int(lengths[row])
        kept = torch.tensor(self.dedup.keep(tokens[row, :length].tolist()))
        extra = {}
        if history is not None:
            extra["history"] = [{"tokens": past[row, :length]} for past in history[: int(steps[row])]]
        return hypothesis(tokens[row, kept], lprobs[row, kept], score, int(steps[row]), **extra)
