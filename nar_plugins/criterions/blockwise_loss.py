"""The loss of blockwise parallel decoding: every head's cross-entropy with the token it looks ahead to."""

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

DECAY = 0.8  # of the weights of later heads (Cai et al. 2024, Medusa)


@dataclass
class BlockwiseLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of every head, spread over the whole vocabulary"}
    )
    block_loss: ChoiceEnum(["sample", "mean", "weighted"]) = field(
        default="sample",
        metadata={"help": "one random head an update (the paper), all of them, or all with weights 1, 0.8, 0.64 .."},
    )
    block_positions: float = field(
        default=1.0,
        metadata={
            "help": "part of the positions that each head is trained at, drawn anew for every head and update: the "
            "heads' projections to the vocabulary are most of the work, and neighbours teach much the same"
        },
    )


@register_criterion("blockwise_loss", dataclass=BlockwiseLossConfig)
class BlockwiseLoss(PartsCriterion):
    """Sum over heads of weight x loss / sum over heads of weight x targets, over the global batch.

    ``sample`` draws one head an update, a function of (seed, update), so that all workers and micro-batches train the
    same one (Stern et al. 2018, section 6). A frozen base has nothing to learn for head 1, which is then never drawn
    nor counted in the loss. Validation asks all heads, everywhere, and weighs them alike; head 1 is logged there in any
    case. Sequential heads are trained together (``mean`` or ``weighted``), from head 2 on at the same positions.
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
        """The heads of this batch, their weights and positions."""
        if model.decoder.sequential and self.block_loss == "sample":
            raise ValueError(
                "--block-loss sample draws one head, and --block-head sequential trains all in turn: use weighted"
            )
        weights = self.weights(model, sample)
        asked = weights if model.training else {1: 0.0, **weights}
        return HeadObjective(asked, self.label_smoothing, self.taken(model, sample))

    def logged(self, model, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """All heads, in every update: one that was not asked has no target."""
        names = [f"h{head}" for head in range(1, model.decoder.block_size + 1)]
        return {name: parts.get(name, LossPart(0, 0, 0, correct=0)) for name in names}

    def weights(self, model, sample: Dict) -> Dict[int, float]:
        """The heads of this batch's loss, and how much each counts."""
        heads = model.trained_heads()
        if not model.training or self.block_loss == "mean":
            return {head: 1.0 for head in heads}
        if self.block_loss == "weighted":
            return {head: DECAY ** (head - heads[0]) for head in heads}
        draw = uniform(self.task.cfg.seed, self.update(sample) ^ HEAD_STREAM, torch.zeros(1, dtype=torch.long), 1)
        return {heads[int(draw * len(heads))]: 1.0}

    def taken(self, model, sample: Dict) -> Optional[Tensor]:
        """The positions (B, K, T) bool that each head is trained at, a function of (seed, update, sentence); None:
        all.
        """
        if not model.training or self.block_positions == 1:
            return None
        (_, length), heads = sample["target"].shape, model.decoder.block_size
        draws = uniform(self.task.cfg.seed, self.update(sample) ^ POSITION_STREAM, sample["id"], length * heads)
        # by position first, so that padding decides nothing
        return draws.unflatten(1, (length, heads)).transpose(1, 2) < self.block_positions

    def update(self, sample: Dict) -> int:
        if "update" not in sample:
            raise ValueError(
                "--block-loss sample and --block-positions need --task nar_translation, which knows the number of the "
                "update"
            )
        return sample["update"]
