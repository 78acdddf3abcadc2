"""The loss of blockwise parallel decoding: head k is trained to predict the k-th next token."""

from dataclasses import dataclass, field
from typing import Dict, Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from nar_plugins.criterions.base import PartsCriterion, check_label_smoothing
from nar_plugins.data.noise import HEAD_STREAM, POSITION_STREAM, uniform
from nar_plugins.models.blockwise.model import HeadObjective
from nar_plugins.modules.losses import LossPart

DECAY = 0.8  # the weight of a head relative to the head before it (Cai et al. 2024, Medusa)


@dataclass
class BlockwiseLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of every head, spread over the whole vocabulary"}
    )
    block_loss: ChoiceEnum(["sample", "mean", "weighted"]) = field(
        default="sample",
        metadata={"help": "one random head per update (the paper), all heads, or all with weights 1, 0.8, 0.64 .."},
    )
    block_positions: float = field(
        default=1.0,
        metadata={
            "help": "share of the positions at which each head is trained, drawn for every head and update; fewer save "
            "most of the time, which the heads' projections to the vocabulary take"
        },
    )


@register_criterion("blockwise_loss", dataclass=BlockwiseLossConfig)
class BlockwiseLoss(PartsCriterion):
    """Sum over heads of weight x loss / sum over heads of weight x targets, over the global batch.

    ``sample`` draws one head per update as a function of (seed, update), so that all workers and micro-batches train
    the same one (Stern et al. 2018, section 6). If the base model is frozen, head 1 is not trained: it is neither drawn
    nor counted. Validation computes all heads at all positions, with equal weights, and always logs head 1. Sequential
    heads are trained together (``mean`` or ``weighted``), from head 2 on at the same positions.
    """

    wrong_model = "--criterion blockwise_loss trains --arch blockwise; other models have no proposal heads"
    part_metric, part_value = "nll_{}", "nll"

    def __init__(self, task, label_smoothing: float, block_loss: str = "sample", block_positions: float = 1.0):
        super().__init__(task)
        if not 0 < block_positions <= 1:
            raise ValueError(f"--block-positions {block_positions}: choose a number above 0 and up to 1")
        check_label_smoothing(label_smoothing)
        self.label_smoothing, self.block_loss, self.block_positions = label_smoothing, str(block_loss), block_positions

    def objective(self, model, sample: Dict) -> HeadObjective:
        """The heads to train on this batch, their weights and positions."""
        if model.decoder.sequential and self.block_loss == "sample":
            raise ValueError(
                "--block-loss sample draws one head, and --block-head sequential trains all in turn: use weighted"
            )
        weights = self.weights(model, sample)
        computed = weights if model.training else {1: 0.0, **weights}
        return HeadObjective(computed, self.label_smoothing, self.trained_positions(model, sample))

    def logged(self, model, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """All heads in every update; a head that was not computed has 0 targets."""
        names = [f"h{head}" for head in range(1, model.decoder.block_size + 1)]
        return {name: parts.get(name, LossPart(0, 0, 0, correct=0)) for name in names}

    def weights(self, model, sample: Dict) -> Dict[int, float]:
        """The heads in the loss of this batch, and their weights."""
        heads = model.trained_heads()
        if not model.training or self.block_loss == "mean":
            return {head: 1.0 for head in heads}
        if self.block_loss == "weighted":
            return {head: DECAY ** (head - heads[0]) for head in heads}
        draw = uniform(self.task.cfg.seed, self.update(sample) ^ HEAD_STREAM, torch.zeros(1, dtype=torch.long), 1)
        return {heads[int(draw * len(heads))]: 1.0}

    def trained_positions(self, model, sample: Dict) -> Optional[Tensor]:
        """The positions (B, K, T) bool at which each head is trained; None: all.

        They are a function of (seed, update, sentence).
        """
        if not model.training or self.block_positions == 1:
            return None
        (_, length), heads = sample["target"].shape, model.decoder.block_size
        draws = uniform(self.task.cfg.seed, self.update(sample) ^ POSITION_STREAM, sample["id"], length * heads)
        # drawn position by position, so that they do not depend on padding
        return draws.unflatten(1, (length, heads)).transpose(1, 2) < self.block_positions

    def update(self, sample: Dict) -> int:
        if "update" not in sample:
            raise ValueError(
                "--block-loss sample and --block-positions need --task nar_translation, which knows the number of the "
                "update"
            )
        return sample["update"]
