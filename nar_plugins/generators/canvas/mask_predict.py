"""Mask-Predict decoding (Ghazvininejad et al. 2019, sections 3.2 and 3.3)."""

import math
from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.canvas.base import CanvasGenerator, DecodedCanvases, canvas_indices, plan_lengths
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
            "positions those below --confidence-threshold; a sentence without any is finished"
        },
    )
    confidence_threshold: float = field(
        default=0.9, metadata={"help": "--schedule confidence: a token at least this probable is not masked again"}
    )


class Candidates(NamedTuple):
    """The canvases between two passes: R = B*N, those of a sentence next to each other."""

    tokens: Tensor  # (R, T) int64
    lprobs: Tensor  # (R, T) float32: of each token in the pass that predicted it; +inf beyond the length, never chosen
    lengths: Tensor  # (R,) int64
    steps: Tensor  # (R,) int64: passes so far
    padding: Optional[Tensor]  # (R, T) bool, True beyond the length; None where all are T long


@register_generator("mask_predict", dataclass=MaskPredictConfig)
class MaskPredictGenerator(CanvasGenerator):
    """Decodes ``cmlm`` checkpoints, one or an ensemble, and others that predict lengths and masked tokens.

    Every pass computes the last layer and the vocabulary projection at the masked positions only. The encoder's keys
    and values are stored once a sentence, for any number of lengths. The host reads nothing back within a pass;
    ``confidence`` reads once after each pass, so that finished sentences leave the batch.
    """

    needs = (*CanvasGenerator.needs, "length_lprobs")
    default_length_beam = 5
    # the defaults of --eval-bleu: a twelfth of the work, and the checkpoints in the same order
    in_validation = {"iterations": 4, "length_beam": 1}

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> DecodedCanvases:
        """All passes over all candidate lengths."""
        lengths, keep = self.lengths(memories, source, target)
        now, history = self.decode(self.start(memories, lengths), memories, lengths.size(1))
        lprobs = now.lprobs.masked_fill(now.lprobs.eq(float("inf")), 0)
        candidates = canvas_indices(*lengths.shape, lengths.device)
        return DecodedCanvases(now.tokens, lprobs, now.lengths, now.steps, candidates, keep, history=history)

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
            width = int(remask_count(widest, done, passes, schedule))  # computed on the host, not read from the device
            picked = now.lprobs.argsort(dim=1, stable=True)[:, :width]
            chosen = torch.arange(width, device=count.device) < count.unsqueeze(1)
            if schedule == "confidence":
                chosen &= now.lprobs.gather(1, picked) < self.threshold()
                sentences = chosen.view(-1, beam * width).any(1).nonzero().squeeze(1)  # the host reads once
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
        """Mask the chosen ones of the picked positions and predict them; the other tokens keep their probabilities.

        Args:
            picked: (R, n) int64 positions, or None for all.
            chosen: (R, n) bool, which of them are masked; canvases differ in how many.
        """
        tokens = now.tokens
        if picked is not None:
            old = tokens.gather(1, picked)
            tokens = tokens.scatter(1, picked, torch.where(chosen, self.mask, old))
        best, lprobs = self.predict(tokens, memories, now.padding, picked)
        if picked is None:
            tokens, lprobs = torch.where(chosen, best, tokens), torch.where(chosen, lprobs, now.lprobs)
        else:
            tokens = tokens.scatter(1, picked, torch.where(chosen, best, old))
            lprobs = now.lprobs.scatter(1, picked, torch.where(chosen, lprobs, now.lprobs.gather(1, picked)))
        return now._replace(tokens=tokens, lprobs=lprobs, steps=now.steps + chosen.any(1))

    def predict(
        self, tokens: Tensor, memories: List[Memory], padding: Optional[Tensor], picked: Optional[Tensor]
    ) -> tuple:
        """The most probable allowed token at every picked position, and its log-probability: (R, n) each."""
        canvas = Canvas(tokens, padding)
        features = [model.decode(canvas, memory, picked) for model, memory in zip(self.models, memories)]
        shape = features[0].shape[:2]
        tokens, lprobs = self.best_tokens([states.flatten(0, 1) for states in features])
        return tokens.view(shape), lprobs.view(shape)

    # -- the confidence schedule -----------------------------------------------------------------------------------

    def threshold(self) -> float:
        """``--confidence-threshold`` as a log-probability."""
        value = self.config.confidence_threshold
        return math.log(value) if value > 0 else -math.inf

    def fill_some(
        self, now: Candidates, memories: List[Memory], picked, chosen, sentences: Tensor, beam: int
    ) -> Candidates:
        """``fill`` for all candidates of some sentences (n,); those of the others do not change."""
        if sentences.numel() * beam == now.tokens.size(0):
            return self.fill(now, memories, picked, chosen)
        active = (sentences.unsqueeze(1) * beam + torch.arange(beam, device=sentences.device)).flatten()
        part = Candidates(*(None if field is None else field[active] for field in now))
        part = self.fill(part, [memory.select(sentences) for memory in memories], picked[active], chosen[active])
        return Candidates(*(None if new is None else old.index_copy(0, active, new) for old, new in zip(now, part)))
