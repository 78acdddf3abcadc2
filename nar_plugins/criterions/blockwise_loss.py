"""The loss of blockwise parallel decoding: every head's cross-entropy with the token it looks ahead to."""

from dataclasses import dataclass, field
from typing import Dict, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from nar_plugins.criterions.sums import Sums
from nar_plugins.criterions.unwrap import unwrapped
from nar_plugins.data.noise import HEAD_STREAM, POSITION_STREAM, uniform

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
class BlockwiseLoss(FairseqCriterion):
    """Sum over heads of weight x loss / sum over heads of weight x targets, over the global batch.

    ``sample`` draws one head an update, a function of (seed, update), so that all workers and micro-batches train the
    same one (Stern et al. 2018, section 6). A frozen base has nothing to learn for head 1, which is then never drawn
    nor counted in the loss. Validation asks all heads, everywhere, and weighs them alike; head 1 is logged there in any
    case. Sequential heads are trained together (``mean`` or ``weighted``), from head 2 on at the same positions.
    """

    def __init__(self, task, label_smoothing: float, block_loss: str = "sample", block_positions: float = 1.0):
        super().__init__(task)
        if not 0 < block_positions <= 1:
            raise ValueError(f"--block-positions {block_positions}: choose a number above 0 and up to 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")
        self.label_smoothing, self.block_loss, self.block_positions = label_smoothing, str(block_loss), block_positions

    def forward(self, model, sample, reduce=True):
        """Loss (summed), its denominator (the targets of the heads, weighted) and what to log, of one batch."""
        plain = unwrapped(model)
        if not hasattr(plain, "trained_heads"):
            raise ValueError("--criterion blockwise_loss trains --arch blockwise; other models have no proposal heads")
        if plain.decoder.sequential and self.block_loss == "sample":
            raise ValueError(
                "--block-loss sample draws one head, and --block-head sequential trains all in turn: use weighted"
            )
        weights = self.weights(plain, sample)
        asked = weights if model.training else {1: 0.0, **weights}
        losses = model(
            **sample["net_input"],
            target=sample["target"],
            heads=asked,
            label_smoothing=self.label_smoothing,
            taken=self.taken(plain, sample),
        )
        heads = losses.heads
        targets = sum(weight * heads[head].count for head, weight in weights.items())
        logs = {
            "loss": losses.loss.detach(),
            "nll_loss": sum(weight * heads[head].nll for head, weight in weights.items()),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": targets,
        }
        for head in range(1, plain.decoder.block_size + 1):  # all of them, so that workers have the same keys
            for name in ("nll", "correct", "count"):
                logs[f"{name}_h{head}"] = getattr(heads[head], name) if head in heads else 0
        return losses.loss, targets, logs

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

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log the loss, and every head's negative log-likelihood in bits and accuracy in percent, from all workers'
        sums.
        """
        sums = Sums(logging_outputs)
        sums.log_bits("loss", "loss", "sample_size")
        sums.log_bits("nll_loss", "nll_loss", "sample_size")
        sums.log_perplexity("sample_size")
        names = {key for log in logging_outputs for key in log if key.startswith("count_h")}
        for name in sorted(names, key=lambda key: int(key[len("count_h") :])):
            head = name[len("count_") :]
            sums.log_bits(f"nll_{head}", f"nll_{head}", name)
            sums.log_mean(f"acc_{head}", f"correct_{head}", name, scale=100, digits=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every entry is a sum, so fairseq may add them up across workers."""
        return True
