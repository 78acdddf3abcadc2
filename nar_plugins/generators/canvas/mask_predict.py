"""Mask-Predict decoding (Ghazvininejad et al. 2019, sections 3.2 and 3.3), and a schedule that commits tokens.

``--schedule confidence`` commits all tokens of at least some probability in every pass and never masks them again
(Kreutzer et al. 2020, arXiv 2010.02352; Wu et al. 2025, Fast-dLLM, for diffusion language models).
"""

import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.base import Statistics
from nar_plugins.generators.canvas.base import CanvasGenerator, DecodedCanvases, Pass, canvas_indices, plan_lengths
from nar_plugins.generators.canvas.schedule import SCHEDULES, remask_count
from nar_plugins.generators.registry import SharedGeneratorConfig, register_generator
from nar_plugins.models.contract import Canvas, Memory
from nar_plugins.modules.packing import spread


@dataclass
class MaskPredictConfig(SharedGeneratorConfig):
    iterations: int = field(default=10, metadata={"help": "passes of the decoder, the first one counted"})
    schedule: ChoiceEnum(list(SCHEDULES)) = field(
        default="linear",
        metadata={
            "help": "how many positions are masked again: linear (the paper), cosine, or confidence: only those that "
            "were never at least --confidence-threshold probable, and no more than linear's; a sentence without any is "
            "finished"
        },
    )
    confidence_threshold: float = field(
        default=0.9,
        metadata={"help": "--schedule confidence: a token at least this probable is never masked again (0 to 1)"},
    )


class Candidates(NamedTuple):
    """The canvases between two passes: R = B*N, those of a sentence next to each other."""

    tokens: Tensor  # (R, T) int64
    lprobs: Tensor  # (R, T) float32: of each token in the pass that predicted it; +inf beyond the length, never chosen
    lengths: Tensor  # (R,) int64
    steps: Tensor  # (R,) int64: passes so far
    padding: Optional[Tensor]  # (R, T) bool, True beyond the length; None where all are T long


@dataclass
class MaskPredictStatistics(Statistics):
    tokens: int = 0  # of the best candidates
    passes: int = 0  # of the best candidates

    def line(self) -> Optional[str]:
        if not self.passes:  # nothing was decoded, or empty sources only
            return None
        return (
            f"mask_predict: {self.sentences} sentences, {self.passes / self.sentences:.2f} passes a sentence, "
            f"{self.tokens / self.passes:.2f} tokens a pass"
        )


@register_generator("mask_predict", dataclass=MaskPredictConfig)
class MaskPredictGenerator(CanvasGenerator):
    """Decodes ``cmlm`` checkpoints, one or an ensemble, and others that predict lengths and masked tokens.

    Every pass computes the last layer and the vocabulary projection at the masked positions only. The encoder's keys
    and values are stored once a sentence, for any number of lengths. The host reads nothing back within a pass;
    ``confidence`` reads once after each pass, so that finished canvases leave the batch and no pass predicts more
    positions than are masked.
    """

    needs = (*CanvasGenerator.needs, "length_lprobs")
    default_length_beam = 5
    # the defaults of --eval-bleu: a twelfth of the work, and the checkpoints in the same order
    in_validation = {"iterations": 4, "length_beam": 1}

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        super().__init__(models, dictionary, config, options, mask, rescorer)
        self.statistics = MaskPredictStatistics()

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
        masked = now.tokens.eq(self.mask)
        now = self.fill(now, memories, picked=None, chosen=masked)
        self.observe(now, None, masked)
        for done in range(1, passes):
            if history is not None:
                history.append(now.tokens)
            if schedule == "confidence":
                ranks, counts = self.uncommitted(now, masked, done)
                most = counts.tolist()  # of every canvas; the host reads once
                if not any(most):
                    break
                picked, chosen = first(ranks, counts, max(most))
                masked = torch.zeros_like(masked).scatter(1, picked, chosen)
                canvases = torch.tensor([i for i, count in enumerate(most) if count], device=counts.device)
                now = self.fill_some(now, memories, picked, chosen, canvases, beam)
            else:
                count = remask_count(now.lengths, done, passes, schedule)
                width = int(remask_count(widest, done, passes, schedule))  # computed on the host, not read
                picked, chosen = first(now.lprobs.argsort(dim=1, stable=True), count, width)
                now = self.fill(now, memories, picked, chosen)
            self.observe(now, picked, chosen)
        if history is not None:
            history.append(now.tokens)
        return now, history

    def observe(self, now: Candidates, picked: Optional[Tensor], chosen: Tensor) -> None:
        """Tell the observer of a pass; ``picked`` and ``chosen`` are ``fill``'s."""
        if self.observer is not None:
            where = chosen if picked is None else torch.zeros_like(now.tokens.bool()).scatter(1, picked, chosen)
            self.observer(Pass(now.tokens, now.lprobs, where))

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
        best, lprobs = self.predict(tokens, memories, now.padding, picked, chosen)
        if picked is None:
            tokens, lprobs = torch.where(chosen, best, tokens), torch.where(chosen, lprobs, now.lprobs)
        else:
            tokens = tokens.scatter(1, picked, torch.where(chosen, best, old))
            lprobs = now.lprobs.scatter(1, picked, torch.where(chosen, lprobs, now.lprobs.gather(1, picked)))
        return now._replace(tokens=tokens, lprobs=lprobs, steps=now.steps + chosen.any(1))

    def predict(
        self,
        tokens: Tensor,
        memories: List[Memory],
        padding: Optional[Tensor],
        picked: Optional[Tensor],
        chosen: Tensor,
    ) -> tuple:
        """The most probable allowed token at every chosen position, and its log-probability: (R, n) each.

        On a CPU the others are not projected, and have 0; on a GPU the host would have to read how many there are.
        """
        canvas = Canvas(tokens, padding)
        if picked is not None:  # what is not chosen depends on the widest canvas; a position twice is computed once
            picked = torch.where(chosen, picked, picked[:, :1])
        features = [model.decode(canvas, memory, picked).flatten(0, 1) for model, memory in zip(self.models, memories)]
        if chosen.device.type != "cpu" or bool(chosen.all()):
            best, lprobs = self.best_tokens(features)
            return best.view(chosen.shape), lprobs.view(chosen.shape)
        slots = chosen.flatten().nonzero().squeeze(1)
        found = self.best_tokens([states.index_select(0, slots) for states in features])
        return tuple(spread(each, slots, chosen.numel()).view(chosen.shape) for each in found)

    # -- the confidence schedule -----------------------------------------------------------------------------------

    def uncommitted(self, now: Candidates, masked: Tensor, done: int) -> tuple:
        """The positions that stay open after ``done`` passes.

        Of the positions that the last pass predicted, all tokens of at least ``--confidence-threshold`` are committed,
        always the most probable one, and as many as leave no more than the linear schedule masks.

        Args:
            masked: (R, T) bool, the positions that the last pass predicted.

        Returns:
            positions (R, T) int64, the least probable of ``masked`` first, and how many of them stay open, (R,) int64.
        """
        lprobs = now.lprobs.masked_fill(~masked, math.inf)
        unsure = (lprobs < self.threshold()).sum(1)
        at_most = torch.minimum(
            remask_count(now.lengths, done, self.config.iterations, "linear"), masked.sum(1) - 1
        ).clamp(min=0)
        return lprobs.argsort(dim=1, stable=True), torch.minimum(unsure, at_most)

    def threshold(self) -> float:
        """``--confidence-threshold`` as a log-probability."""
        value = self.config.confidence_threshold
        return math.log(value) if value > 0 else -math.inf

    def fill_some(
        self, now: Candidates, memories: List[Memory], picked, chosen, canvases: Tensor, beam: int
    ) -> Candidates:
        """``fill`` for some canvases (n,) int64; the others do not change."""
        if len(canvases) == len(now.tokens):
            return self.fill(now, memories, picked, chosen)
        part = Candidates(*(None if field is None else field[canvases] for field in now))
        if len(now.tokens) > beam:  # the memory of a single sentence serves any number of its canvases
            memories = [memory.select(canvases // beam) for memory in memories]
        part = self.fill(part, memories, picked[canvases], chosen[canvases])
        return Candidates(*(None if new is None else old.index_copy(0, canvases, new) for old, new in zip(now, part)))

    # -- statistics ------------------------------------------------------------------------------------------------

    def hypotheses(self, decoded: DecodedCanvases, *scores: Tensor) -> List[List[Dict]]:
        """``CanvasGenerator.hypotheses``; counts the tokens and passes of the best one of every sentence."""
        results = super().hypotheses(decoded, *scores)
        for best, *_ in results:
            self.statistics.sentences += 1
            self.statistics.tokens += len(best["tokens"]) if best["steps"] else 0
            self.statistics.passes += best["steps"]
        return results


def first(positions: Tensor, counts: Tensor, width: int) -> tuple:
    """The first ``counts`` (R,) of positions (R, T), at most ``width``: (R, width) int64, and bool, True for these."""
    return positions[:, :width], torch.arange(width, device=counts.device) < counts.unsqueeze(1)
