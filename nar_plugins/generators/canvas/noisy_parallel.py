"""Noisy parallel decoding (Gu et al. 2018, section 4.2): an AR model chooses among several decoded fertilities."""

from argparse import Namespace
from dataclasses import dataclass, field
from typing import List, Optional

import torch
from torch import Tensor

from nar_plugins.generators.base import Statistics
from nar_plugins.generators.canvas.base import DecodedCanvases
from nar_plugins.generators.canvas.one_pass import NatGenerator
from nar_plugins.generators.registry import SharedGeneratorConfig, register_generator
from nar_plugins.models.contract import Memory, Plan
from nar_plugins.modules import source_copy


@dataclass
class NoisyParallelConfig(SharedGeneratorConfig):
    fertility_samples: int = field(
        default=10,
        metadata={"help": "number of candidates: the most probable fertilities, the expected ones, and samples"},
    )
    sampling_seed: int = field(
        default=1, metadata={"help": "seed of the samples, which are a function of it and of the source's tokens"}
    )


@dataclass
class NoisyParallelStatistics(Statistics):
    drawn: int = 0  # candidates
    decoded: int = 0  # candidates with distinct fertilities
    scored: int = 0  # candidates with distinct translations

    def line(self) -> Optional[str]:
        if not self.drawn:
            return None
        return (
            f"noisy_parallel: {self.sentences} sentences, {self.drawn} candidates; equal fertilities "
            f"{1 - self.decoded / self.drawn:.1%}, equal translations {1 - self.scored / self.drawn:.1%}"
        )


@register_generator("noisy_parallel", dataclass=NoisyParallelConfig)
class NoisyParallelGenerator(NatGenerator):
    """Decodes ``nat`` checkpoints with fertilities; ``--rescorer`` chooses.

    Equal fertilities are decoded once and equal translations are scored once. The statistics count both.
    """

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, rescorer=None):
        super().__init__(models, dictionary, config, options, mask, rescorer)
        self.statistics = NoisyParallelStatistics()

    def search(self, memories: List[Memory], source: Tensor, target: Optional[Tensor]) -> DecodedCanvases:
        """One pass over all distinct fertilities of all sentences."""
        fertilities = self.bounded(self.draw(self.fertility_probabilities(memories), source), source)
        keep = source_copy.distinct(fertilities)
        sentences = keep.nonzero()[:, 0]
        candidates = (keep.flatten().cumsum(0) - 1).view(keep.shape)
        tokens, lprobs, lengths = self.decode(memories, Plan(sentences, fertilities=fertilities[keep]), ragged=True)
        self.statistics.sentences += keep.size(0)
        self.statistics.drawn += keep.numel()
        self.statistics.decoded += tokens.size(0)
        steps, history = torch.ones_like(lengths), self.history(tokens)
        return DecodedCanvases(tokens, lprobs, lengths, steps, candidates, keep, history=history)

    def draw(self, probabilities: Tensor, source: Tensor) -> Tensor:
        """Candidate fertilities (B, N, S) from probabilities (B, S, 50): argmax, average, samples."""
        number = self.config.fertility_samples
        deterministic = [probabilities.argmax(-1), source_copy.average(probabilities)][:number]
        draws = source_copy.candidate_draws(source, self.pad, self.config.sampling_seed, max(0, number - 2))
        samples = source_copy.sample(probabilities.unsqueeze(1), draws)
        return torch.cat([torch.stack(deterministic, 1), samples], 1)

    def report(self) -> None:
        self.statistics.scored = self.rescorer.scored
        super().report()
