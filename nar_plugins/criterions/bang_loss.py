"""The loss of BANG, in pre-training and fine-tuning: the cross-entropy of the tokens that [MASK] positions predict.

Row s of a target has the masks that follow the first s targets, one per stream; its mask j predicts target s + j.
"""

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
        default=0.0, metadata={"help": "label smoothing of every mask position, spread over the whole vocabulary"}
    )
    ar_weight: float = field(
        default=1.0, metadata={"help": "weight of an AR prediction: its mask follows a token directly"}
    )
    bridge_weight: float = field(default=1.0, metadata={"help": "weight of a bridge prediction: neither AR nor NAR"})
    nar_weight: float = field(
        default=1.0,
        metadata={"help": "weight of a NAR prediction: all tokens of its target or span before it are masks"},
    )
    bang_rows: str = field(
        default="all",
        metadata={
            "help": "which rows of masks are trained: all, or sample:R: the AR and NAR predictions and, of the other "
            "rows, R random ones per sentence, weighted so that the expected loss is the same"
        },
    )
    nar_ratio: Optional[float] = field(
        default=None,
        metadata={
            "help": "the release's fine-tuning: this share of the batches trains NAR, the others AR, and none the "
            "bridge (unset: every batch trains all three)"
        },
    )


@register_criterion("bang_loss", dataclass=BangLossConfig)
class BangLoss(PartsCriterion):
    """Sum over mask positions of weight x loss / sum over mask positions of weight, over the global batch.

    ``models/bang/losses.py`` defines the classes AR, bridge and NAR. A mask position that is both AR and NAR counts
    once in the loss, with the larger of the two weights, and is logged in both ``ar`` and ``nar``. So equal weights,
    the default, count every mask position once (the release's pre-training), and ``--bridge-weight 0 --nar-weight 0``
    is the autoregressive loss. With ``--no-nar-sees-bos`` it is two mask positions, with and without the start token.

    ``--bang-rows sample:R`` computes the AR and NAR predictions and R of the other rows of every sentence. The bridge
    predictions of these are scaled to the number of all rows, and the denominator counts all mask positions, so that
    the expected loss is the same. The rows are a function of (seed, update, sentence); in validation of (seed,
    sentence).

    ``--nar-ratio`` makes all batches of an update NAR or AR, as a function of (seed, update). The validation loss is
    then the mixture of both. All three classes are always logged.
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
        """The weight of a mask position of each class."""
        return {"ar": self.ar_weight, "bridge": self.bridge_weight, "nar": self.nar_weight}

    def objective(self, model, sample: Dict) -> BangObjective:
        """The mask positions to compute in this batch, and their weights."""
        if "update" not in sample and (self.sampled is not None or self.nar_ratio is not None):
            raise ValueError(
                "--bang-rows sample and --nar-ratio need a task that knows the number of the update: "
                "--task nar_translation or bang_pretraining"
            )
        if self.nar_ratio and model.args.ngram:
            raise ValueError(f"--ngram {model.args.ngram} would cut the NAR rows of --nar-ratio: leave it out")
        real, spans = sample["target"].ne(model.decoder.padding_idx), sample["net_input"].get("target_idx")
        return self.mask_objective(sample, model.mask_counts(real, spans), span_starts(real, spans), model.training)

    def mask_objective(self, sample: Dict, full: Tensor, starts: Tensor, training: bool) -> BangObjective:
        """The mask positions of a batch to compute, and their weights.

        Args:
            full: (B, T) int64, the length of every row of masks.
            starts: (B, T) bool, the starts of the target or of its spans, whose rows are NAR.
        """
        weights = dict(self.class_weights(), both=max(self.ar_weight, self.nar_weight))
        if self.nar_ratio is not None:
            weights = self.mode_weights(sample["update"], full.device, training)
        nar = full.masked_fill(~starts, 0)
        bridge = full.masked_fill(starts | full.lt(2), 0)  # the lengths of the rows with bridge predictions
        scale = None
        if self.sampled is not None:
            draws = uniform(
                self.task.cfg.seed, sample["update"] ^ ROW_STREAM, sample["id"].to(full.device), full.size(1)
            )
            rank = draws.masked_fill(bridge.eq(0), math.inf).argsort(1).argsort(1)
            bridge_rows = bridge.gt(0).sum(1)
            bridge = bridge.masked_fill(rank >= self.sampled, 0)
            scale = bridge_rows.double() / bridge_rows.clamp(min=1, max=self.sampled)
        if training and weights["nar"] == 0:
            nar = torch.zeros_like(nar)
        if training and weights["bridge"] == 0:
            bridge = torch.zeros_like(bridge)
        return BangObjective(weights, self.label_smoothing, nar + bridge, not training or weights["ar"] > 0, scale)

    def logged(self, model, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """All three classes in every update; ``ar`` and ``nar`` include ``both``. Untrained classes count 0 targets."""
        both, classes = parts["both"], {}
        for name in ("ar", "bridge", "nar"):
            part = parts[name]
            if name != "bridge":
                part = part._replace(loss=part.loss + both.loss, nll=part.nll + both.nll, count=part.count + both.count)
            classes[name] = part if part.weight > 0 or not model.training else LossPart(0, 0, 0)
        return classes

    def mode_weights(self, update: int, device, training: bool) -> Dict[str, float]:
        """The class weights of an update under ``--nar-ratio``: NAR or AR; in validation their mixture."""
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
