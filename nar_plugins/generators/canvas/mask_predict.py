"""Mask-Predict decoding (Ghazvininejad et al. 2019, sections 3.2 and 3.3)."""

import math
from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.canvas.base import Found, ParallelGenerator, plan_lengths, rectangle
from nar_plugins.generators.canvas.schedule import SCHEDULES, remask_count
from nar_plugins.generators.registry import SharedGeneratorConfig, register_generator
from nar_plugins.models.contract import Canvas, Memory


@dataclass
class MaskPredictConfig(SharedGeneratorConfig):
    iterations: int = field(default=10, metadata={"help": "passes of the decoder, the first one counted"})
    schedule: ChoiceEnum(list(SCHEDULES)) = field(
        default="linear",
        metadata={
            "help": "how many positions are masked again: linear (the paper), cosine, or confidence: of linear's "
            "positions "
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
class MaskPredictGenerator(ParallelGenerator):
    """Decodes ``cmlm`` checkpoints, one or an ensemble, and others that predict lengths and masked tokens.

    Every pass projects to the vocabulary, and computes the last layer for, only the positions that are masked; the
    encoder's keys and values stand once a sentence, however many lengths are tried. Within a pass nothing is read back
    by the host; ``confidence`` reads back once after each, to let finished sentences leave the batch.
    """

    needs = (*ParallelGenerator.needs, "length_lprobs")
    default_length_beam = 5
    in_validation = {
        "iterations": 4,
        "length_beam": 1,
    }  # by default: a twelfth of the work, and the checkpoints in the same order

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> Found:
        """All passes over all candidate lengths."""
        lengths, keep = self.lengths(memories, source, target)
        now, history = self.decode(self.start(memories, lengths), memories, lengths.size(1))
        lprobs = now.lprobs.masked_fill(now.lprobs.eq(float("inf")), 0)
        rows = rectangle(*lengths.shape, lengths.device)
        return Found(now.tokens, lprobs, now.lengths, now.steps, rows, keep, history=history)

    def start(self, memories: List[Memory], lengths: Tensor) -> Candidates:
        """Blank canvases for lengths (B, N)."""
        plan = plan_lengths(lengths)
        tokens, padding = self.models[0].canvas(memories[0], plan)
        lprobs = torch.zeros(tokens.shape, device=tokens.device)
        if padding is not None:
            lprobs = lprobs.masked_fill(padding, float("inf"))
        return Candidates(tokens, lprobs, plan.lengths, torch.zeros_like(plan.lengths), padding)

    def decode(self, now: Candidates, memories: List[Memory], beam: int) -> tuple:
        """All passes; the candidates and, with ``--retain-iter-history``, the tokens (R, T) after each pass."""
        history = [] if self.options.retain_iter_history else None
        passes, schedule = self.config.iterations, str(self.config.schedule)
        widest = torch.tensor(now.tokens.size(1))
        now = self.fill(now, memories, picked=None, chosen=now.tokens.eq(self.mask))
        for done in range(1, passes):
            if history is not None:
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
        if history is not None:
            history.append(now.tokens)
        return now, history

    # -- one pass --------------------------------------------------------------------------------------------------

    def fill(self, now: Candidates, memories: List[Memory], picked: Optional[Tensor], chosen: Tensor) -> Candidates:
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

    def predict(
        self, tokens: Tensor, memories: List[Memory], padding: Optional[Tensor], picked: Optional[Tensor]
    ) -> tuple:
        """The best allowed word at every picked position and its log-probability among all words: (R, n) each."""
        canvas = Canvas(tokens, padding)
        features = [model.decode(canvas, memory, picked) for model, memory in zip(self.models, memories)]
        shape = features[0].shape[:2]
        words, lprobs = self.words([one.flatten(0, 1) for one in features])
        return words.view(shape), lprobs.view(shape)

    # -- the confidence schedule -----------------------------------------------------------------------------------

    def threshold(self) -> float:
        """``--confidence-threshold`` as a log-probability."""
        value = self.config.confidence_threshold
        return math.log(value) if value > 0 else -math.inf

    def fill_some(
        self, now: Candidates, memories: List[Memory], picked, chosen, sentences: Tensor, beam: int
    ) -> Candidates:
        """``fill`` for some sentences (n,), all their candidates; the others stay as they are."""
        if sentences.numel() * beam == now.tokens.size(0):
            return self.fill(now, memories, picked, chosen)
        rows = (sentences.unsqueeze(1) * beam + torch.arange(beam, device=sentences.device)).flatten()
        part = Candidates(*(None if part is None else part[rows] for part in now))
        part = self.fill(part, [memory.select(sentences) for memory in memories], picked[rows], chosen[rows])
        return Candidates(*(None if new is None else old.index_copy(0, rows, new) for old, new in zip(now, part)))
