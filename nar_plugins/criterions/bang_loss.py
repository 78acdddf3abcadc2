"""The loss of BANG: cross-entropy of every [MASK] cell, in pre-training and in fine-tuning."""

import math
from dataclasses import dataclass, field
from typing import Dict, Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from nar_plugins.criterions.base import PartsCriterion, check_label_smoothing
from nar_plugins.data.noise import MODE_STREAM, ROW_STREAM, uniform
from nar_plugins.models.bang.losses import BangObjective
from nar_plugins.models.bang.stream_layout import span_starts
from nar_plugins.modules.losses import LossPart


@dataclass
class BangLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of every cell, spread over the whole vocabulary"}
    )
    ar_weight: float = field(default=1.0, metadata={"help": "weight of a cell whose mask follows a token"})
    bridge_weight: float = field(default=1.0, metadata={"help": "weight of a cell that is neither AR nor NAR"})
    nar_weight: float = field(
        default=1.0, metadata={"help": "weight of a cell in the row from the start of the target or span"}
    )
    bang_rows: str = field(
        default="all",
        metadata={
            "help": "all rows of masks, or sample:R: AR, NAR and R random rows of every sentence, weighted so that the "
            "expected loss stays the same"
        },
    )
    nar_ratio: Optional[float] = field(
        default=None,
        metadata={
            "help": "the official fine-tuning: this share of the batches is NAR, the others are AR, and the bridge is "
            "not trained (unset: every batch has all cells)"
        },
    )


@register_criterion("bang_loss", dataclass=BangLossConfig)
class BangLoss(PartsCriterion):
    """Sum over cells of weight x loss / sum over cells of weight, over the global batch.

    The classes of cells are those of ``models/bang/losses.py``. A cell that is AR and NAR is one cell in the loss, with
    the larger of the two weights; the logged ``ar`` and ``nar`` both have it. So equal weights, the default, count
    every cell once (the release's pre-training), and ``--bridge-weight 0 --nar-weight 0`` is the plain autoregressive
    loss. With ``--no-nar-sees-bos`` that cell is two, with and without the start token.

    ``--bang-rows sample:R`` computes the AR and NAR cells and, of the other rows, R of every sentence; their bridge
    cells stand for those of all rows, and the denominator is that of all cells, so that the loss is the same in
    expectation. The rows are a function of (seed, update, sentence), those of validation of (seed, sentence).

    ``--nar-ratio`` makes each update's batches NAR or AR, a function of (seed, update). In validation the loss is then
    the mixture of both; all three classes are logged in any case.
    """

    wrong_model = "--criterion bang_loss trains --arch bang; other models have no rows of masks"
    part_value = "nll"

    def __init__(
        self,
        task,
        label_smoothing: float = 0.0,
        ar_weight: float = 1.0,
        bridge_weight: float = 1.0,
        nar_weight: float = 1.0,
        bang_rows: str = "all",
        nar_ratio: Optional[float] = None,
    ):
        super().__init__(task)
        check_label_smoothing(label_smoothing)
        self.ar_weight, self.bridge_weight, self.nar_weight = ar_weight, bridge_weight, nar_weight
        for name, weight in self.class_weights().items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"--{name}-weight {weight}: choose a number from 0 up")
        if not any(self.class_weights().values()):
            raise ValueError("--ar-weight, --bridge-weight and --nar-weight are all 0: one class of cells must count")
        if nar_ratio is not None and not 0 <= nar_ratio <= 1:
            raise ValueError(f"--nar-ratio {nar_ratio}: choose a number from 0 (all batches AR) to 1 (all NAR)")
        if nar_ratio is not None and set(self.class_weights().values()) != {1.0}:
            raise ValueError("--nar-ratio decides what counts: leave --ar-weight, --bridge-weight and --nar-weight out")
        if bang_rows != "all" and (nar_ratio is not None or bridge_weight == 0):
            raise ValueError(
                f"--bang-rows {bang_rows}: no bridge is trained with --nar-ratio or --bridge-weight 0; leave it out"
            )
        self.label_smoothing, self.nar_ratio = label_smoothing, nar_ratio
        self.bang_rows = bang_rows
        self.sampled = sampled_rows(self.bang_rows)

    def class_weights(self) -> Dict[str, float]:
        """The weight of a cell of each class."""
        return {"ar": self.ar_weight, "bridge": self.bridge_weight, "nar": self.nar_weight}

    def objective(self, model, sample: Dict) -> BangObjective:
        """The cells of this batch and their weights."""
        if "update" not in sample and (self.sampled is not None or self.nar_ratio is not None):
            raise ValueError(
                "--bang-rows sample and --nar-ratio need a task that knows the number of the update: "
                "--task nar_translation or bang_pretraining"
            )
        if self.nar_ratio and model.args.ngram:
            raise ValueError(f"--ngram {model.args.ngram} would cut the NAR rows of --nar-ratio: leave it out")
        real, spans = sample["target"].ne(model.decoder.padding_idx), sample["net_input"].get("target_idx")
        return self.share(sample, model.mask_counts(real, spans), span_starts(real, spans), model.training)

    def share(self, sample: Dict, full: Tensor, starts: Tensor, training: bool) -> BangObjective:
        """What to compute of a batch whose rows have ``full`` cells (B, T), and what it weighs."""
        weights = dict(self.class_weights(), both=max(self.ar_weight, self.nar_weight))
        if self.nar_ratio is not None:
            weights = self.mode(sample["update"], full.device, training)
        nar = full.masked_fill(~starts, 0)
        bridge = full.masked_fill(starts | full.lt(2), 0)  # the rows that have bridge cells
        scale = None
        if self.sampled is not None:
            draws = uniform(
                self.task.cfg.seed, sample["update"] ^ ROW_STREAM, sample["id"].to(full.device), full.size(1)
            )
            rank = draws.masked_fill(bridge.eq(0), math.inf).argsort(1).argsort(1)
            there = bridge.gt(0).sum(1)
            bridge = bridge.masked_fill(rank >= self.sampled, 0)
            scale = there.double() / there.clamp(min=1, max=self.sampled)
        if training and weights["nar"] == 0:
            nar = torch.zeros_like(nar)
        if training and weights["bridge"] == 0:
            bridge = torch.zeros_like(bridge)
        return BangObjective(weights, self.label_smoothing, nar + bridge, not training or weights["ar"] > 0, scale)

    def logged(self, model, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """All classes, in every update; a cell that is AR and NAR is in both. What training leaves out has no cell."""
        both, found = parts["both"], {}
        for name in ("ar", "bridge", "nar"):
            part = parts[name]
            if name != "bridge":
                part = part._replace(loss=part.loss + both.loss, nll=part.nll + both.nll, count=part.count + both.count)
            found[name] = part if part.weight > 0 or not model.training else LossPart(0, 0, 0)
        return found

    def mode(self, update: int, device, training: bool) -> Dict[str, float]:
        """The weights that ``--nar-ratio`` gives this update's batches; in validation those of the mixture."""
        if not training:
            return {"ar": 1 - self.nar_ratio, "nar": self.nar_ratio, "bridge": 0.0, "both": 1.0}
        draw = uniform(self.task.cfg.seed, update ^ MODE_STREAM, torch.zeros(1, dtype=torch.long), 1)
        nar = float(draw < self.nar_ratio)
        return {"ar": 1 - nar, "nar": nar, "bridge": 0.0, "both": 1.0}


def sampled_rows(rows: str) -> Optional[int]:
    """R of ``--bang-rows sample:R``; None for ``all``."""
    if rows == "all":
        return None
    kind, _, number = rows.partition(":")
    if kind != "sample" or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--bang-rows {rows}: give all, or sample:R with R random rows of a sentence, from 1 up")
    return int(number)
