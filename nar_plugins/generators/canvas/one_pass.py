"""One decoder pass: fertilities, lengths or CTC define the canvas, all positions are predicted at once."""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import List, Optional

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from nar_plugins.generators.base import ensemble_mean, refuse_nan
from nar_plugins.generators.canvas.base import CanvasGenerator, DecodedCanvases, Pass, canvas_indices, plan_lengths
from nar_plugins.generators.registry import SharedGeneratorConfig, register_generator
from nar_plugins.models.contract import Memory, Plan
from nar_plugins.modules import ctc, source_copy
from nar_plugins.modules.best_of_rows import ban
from nar_plugins.modules.precision import full


@dataclass
class OnePassConfig(SharedGeneratorConfig):
    fertility: ChoiceEnum(["argmax", "average"]) = field(
        default="argmax",
        metadata={"help": "the most probable fertility of every source token, or the expected one, rounded"},
    )
    ctc_beam: int = field(
        default=1,
        metadata={
            "help": "CTC: 1 takes the best path; more: prefix beam search, which sums over the paths of an output"
        },
    )


class NatGenerator(CanvasGenerator):
    """Base of the generators of ``nat`` checkpoints: one pass over canvases."""

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        super().__init__(models, dictionary, config, options, mask, rescorer)
        if len({(model.predicts, model.canvas_kind) for model in self.models}) > 1:
            raise ValueError(
                "an ensemble of nat models needs the same --source-copy, --ctc and --upsample in all of them"
            )
        self.fertile, self.blank = self.models[0].predicts == "fertilities", self.models[0].blank

    def fertility_probabilities(self, memories: List[Memory]) -> Tensor:
        """(B, S, 50), the mean of the models'."""
        lprobs = [model.fertility_lprobs(memory) for model, memory in zip(self.models, memories)]
        probabilities = ensemble_mean(lprobs).exp()
        refuse_nan(bool(probabilities.isnan().any()))
        return probabilities

    def bounded(self, fertilities: Tensor, source: Tensor) -> Tensor:
        """Fertilities (B, N, S) or (B, S), cut where their canvas would be longer than allowed."""
        longest = self.max_lengths(source).clamp(max=min(model.max_decoder_positions() for model in self.models))
        shape = (-1,) + (1,) * (fertilities.dim() - 2)
        return source_copy.bounded(fertilities, source.ne(self.pad).sum(1).view(shape), longest.view(shape))

    def features(self, memories: List[Memory], plan: Plan, ragged: bool = False) -> tuple:
        """Every model's features (R, T, D) on the planned canvases, and which of their positions are real, (R, T) bool.

        Args:
            ragged: sentences differ in their number of canvases.
        """
        features = []
        for model, memory in zip(self.models, memories):
            canvas = model.canvas(memory, plan)
            features.append(model.decode(canvas, memory.select(plan.sentences) if ragged else memory))
        return features, canvas.real()

    def decode(self, memories: List[Memory], plan: Plan, ragged: bool = False) -> tuple:
        """Tokens (R, T) and their log-probabilities, ``pad`` and 0 beyond the lengths (R,)."""
        features, real = self.features(memories, plan, ragged)
        best, lprobs = self.best_tokens([states[real] for states in features])
        tokens = torch.full(real.shape, self.pad, device=real.device).masked_scatter(real, best)
        scores = torch.zeros(real.shape, dtype=lprobs.dtype, device=real.device).masked_scatter(real, lprobs)
        if self.observer is not None:
            self.observer(Pass(tokens, scores, real))
        return tokens, scores, real.sum(1)

    def history(self, tokens: Tensor) -> Optional[List[Tensor]]:
        """The history for ``--retain-iter-history``: one pass."""
        return [tokens] if self.options.retain_iter_history else None


@register_generator("one_pass", dataclass=OnePassConfig)
class OnePassGenerator(NatGenerator):
    """Decodes ``nat`` checkpoints, one or an ensemble.

    A sentence has one candidate with fertilities, ``--length-beam`` with a length head, ``--ctc-beam`` with CTC.
    """

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        super().__init__(models, dictionary, config, options, mask, rescorer)
        if self.blank is not None:  # it is predicted, and dropped from the output
            self.banned = tuple(symbol for symbol in self.banned if symbol != self.blank)

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> DecodedCanvases:
        """Decode a batch in one pass."""
        sentences = torch.arange(source.size(0), device=source.device)
        if self.blank is not None:
            return self.search_ctc(memories, sentences)
        if self.fertile:
            probabilities = self.fertility_probabilities(memories)
            average = str(self.config.fertility) == "average"
            fertilities = source_copy.average(probabilities) if average else probabilities.argmax(-1)
            plan, candidates = Plan(sentences, fertilities=self.bounded(fertilities, source)), sentences.unsqueeze(1)
            keep = torch.ones_like(candidates, dtype=torch.bool)
        else:
            lengths, keep = self.lengths(memories, source, target)
            plan, candidates = plan_lengths(lengths), canvas_indices(*lengths.shape, lengths.device)
        tokens, lprobs, lengths = self.decode(memories, plan)
        steps, history = torch.ones_like(lengths), self.history(tokens)
        return DecodedCanvases(tokens, lprobs, lengths, steps, candidates, keep, history=history)

    # -- CTC -----------------------------------------------------------------------------------------------------------

    def search_ctc(self, memories: List[Memory], sentences: Tensor) -> DecodedCanvases:
        """Best path, or beam search; the score is per position of the canvas, blanks counted."""
        if self.config.ctc_beam > 1:
            return self.search_prefixes(memories, sentences)
        path, lprobs, canvas = self.decode(memories, Plan(sentences))
        kept = ctc.collapse(path.masked_fill(path.eq(self.pad), self.blank), canvas, self.blank)
        order = (~kept).long().argsort(dim=1, stable=True)
        sizes = kept.sum(1)
        width = max(1, int(sizes.max()))
        order, kept = order[:, :width], kept.gather(1, order)[:, :width]
        tokens = path.gather(1, order).masked_fill(~kept, self.pad)
        scores = lprobs.sum(1)
        tokens, sizes = self.at_least_the_end(tokens, sizes)
        candidates = sentences.unsqueeze(1)
        return DecodedCanvases(
            tokens,
            lprobs.gather(1, order).masked_fill(~kept, 0),
            sizes,
            torch.ones_like(sizes),
            candidates,
            torch.ones_like(candidates, dtype=torch.bool),
            scores,
            canvas,
            self.history(tokens),
        )

    def search_prefixes(self, memories: List[Memory], sentences: Tensor) -> DecodedCanvases:
        """Prefix beam search. Tokens have no log-probability of their own here: each gets an equal share of its
        output's.
        """
        features, real = self.features(memories, Plan(sentences))
        lprobs = [full(model.project(states)).log_softmax(-1) for model, states in zip(self.models, features)]
        lprobs = ban(ensemble_mean(lprobs), self.banned)
        canvas = real.sum(1)
        beam = self.config.ctc_beam
        tokens, sizes, scores = ctc.prefix_beam_search(lprobs, canvas, self.blank, beam, max(10, beam))
        keep = scores > -float("inf")
        tokens, sizes, scores = tokens.flatten(0, 1), sizes.flatten(), scores.flatten()
        tokens = tokens[:, : max(1, int(sizes.max()))]
        beyond = torch.arange(tokens.size(1), device=tokens.device) >= sizes.unsqueeze(1)
        shares = (scores / sizes.clamp(min=1)).unsqueeze(1).expand_as(beyond).masked_fill(beyond, 0)
        tokens, sizes = self.at_least_the_end(tokens.masked_fill(beyond, self.pad), sizes)
        return DecodedCanvases(
            tokens,
            shares,
            sizes,
            torch.ones_like(sizes),
            canvas_indices(*keep.shape, keep.device),
            keep,
            scores,
            canvas.repeat_interleave(beam),
            self.history(tokens),
        )

    def at_least_the_end(self, tokens: Tensor, sizes: Tensor) -> tuple:
        """Replace an output without any token by ``</s>``: tokens (R, T), sizes (R,)."""
        first = torch.where(sizes.eq(0), self.eos, tokens[:, 0])
        return torch.cat([first.unsqueeze(1), tokens[:, 1:]], 1), sizes.clamp(min=1)
