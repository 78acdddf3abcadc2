"""The loss of BANG: cross-entropy of every [MASK] cell, in pre-training and in fine-tuning."""

import math
from dataclasses import dataclass, field
from typing import Dict, NamedTuple, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from nar_plugins.criterions.sums import Sums
from nar_plugins.criterions.unwrap import unwrapped
from nar_plugins.data.noise import MODE_STREAM, ROW_STREAM, uniform
from nar_plugins.models.bang.stream_layout import Cells, span_starts

CLASSES = ("ar", "bridge", "nar")


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


class Share(NamedTuple):
    """What is computed of a batch, and what each of its cells stands for."""

    sizes: Tensor  # (B, T) int64, the cells of every row
    lone: bool  # every row's first cell besides
    weights: Dict[str, float]  # of the classes; a cell of two classes has ``both``
    scale: Tensor  # (B,) float64, how many rows' bridge cells each computed row stands for


@register_criterion("bang_loss", dataclass=BangLossConfig)
class BangLoss(FairseqCriterion):
    """Sum over cells of weight x loss / sum over cells of weight, over the global batch.

    Cell (s, j) predicts target s + j from the targets before s and j masks before it. It is AR where j = 0, NAR where
    row s is that of the start of the target (in pre-training: of its span), and bridge otherwise. The first cell of a
    NAR row is AR,
    too: in the loss it is one cell, with the larger of the two weights; the logged ``ar`` and ``nar`` both have it. So
        equal
    weights, the default, count every cell once (the release's pre-training), and ``--bridge-weight 0 --nar-weight 0``
    is the plain autoregressive loss. With ``--no-nar-sees-bos`` that cell is two, with and without the start token.

    ``--bang-rows sample:R`` computes the AR and NAR cells and, of the other rows, R of every sentence; their bridge
    cells stand for those of all rows, and the denominator is that of all cells, so that the loss is the same in
    expectation. The rows are a function of (seed, update, sentence), those of validation of (seed, sentence).

    ``--nar-ratio`` makes each update's batches NAR or AR, a function of (seed, update). In validation the loss is then
    the mixture of both; all three classes are logged in any case.
    """

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
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")
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

    def forward(self, model, sample, reduce=True):
        """Loss (summed), its denominator (the cells, weighted) and what to log, of one batch."""
        plain = unwrapped(model)
        if not hasattr(plain, "row_sizes"):
            raise ValueError("--criterion bang_loss trains --arch bang; other models have no rows of masks")
        if "update" not in sample and (self.sampled is not None or self.nar_ratio is not None):
            raise ValueError(
                "--bang-rows sample and --nar-ratio need a task that knows the number of the update: "
                "--task nar_translation or bang_pretraining"
            )
        if self.nar_ratio and plain.args.ngram:
            raise ValueError(f"--ngram {plain.args.ngram} would cut the NAR rows of --nar-ratio: leave it out")
        net_input, target = sample["net_input"], sample["target"]
        real = target.ne(plain.decoder.padding_idx)
        full = plain.row_sizes(real, net_input.get("target_idx"))
        starts = span_starts(real, net_input.get("target_idx"))
        share = self.share(sample, full, starts, model.training)
        counts = count_cells(real, full, starts, plain.decoder.nar_sees_bos)

        def weights(cells: Cells) -> Tensor:
            return cell_weights(classes(cells, starts, plain.decoder.nar_sees_bos), share, cells.sentence)

        out = model(
            **net_input,
            target=target,
            sizes=share.sizes,
            lone=share.lone,
            label_smoothing=self.label_smoothing,
            weigh=weights,
        )
        members = classes(out.cells, starts, plain.decoder.nar_sees_bos)
        sample_size = total_weight(counts, share)
        logs = {
            "loss": out.loss.detach(),
            "nll_loss": (weights(out.cells).to(out.nll) * out.nll).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "sample_size": sample_size,
        }
        stands_for = torch.where(members["bridge"], share.scale[out.cells.sentence], 1.0).to(out.nll)
        for name in CLASSES:  # all of them, so that workers have the same keys
            there = self.computes(name, model.training, share)
            logs[f"{name}_nll"] = (out.nll * stands_for * members[name]).sum() if there else 0
            logs[f"{name}_count"] = counts[name] if there else 0
        return out.loss, sample_size, logs

    def share(self, sample: Dict, full: Tensor, starts: Tensor, training: bool) -> Share:
        """What to compute of a batch whose rows have ``full`` cells (B, T), and what it weighs."""
        weights = dict(self.class_weights(), both=max(self.ar_weight, self.nar_weight))
        if self.nar_ratio is not None:
            weights = self.mode(sample["update"], full.device, training)
        nar = full.masked_fill(~starts, 0)
        bridge = full.masked_fill(starts | full.lt(2), 0)  # the rows that have bridge cells
        scale = torch.ones(len(full), dtype=torch.float64, device=full.device)
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
        return Share(nar + bridge, not training or weights["ar"] > 0, weights, scale)

    def mode(self, update: int, device, training: bool) -> Dict[str, float]:
        """The weights that ``--nar-ratio`` gives this update's batches; in validation those of the mixture."""
        if not training:
            return {"ar": 1 - self.nar_ratio, "nar": self.nar_ratio, "bridge": 0.0, "both": 1.0}
        draw = uniform(self.task.cfg.seed, update ^ MODE_STREAM, torch.zeros(1, dtype=torch.long), 1)
        nar = float(draw < self.nar_ratio)
        return {"ar": 1 - nar, "nar": nar, "bridge": 0.0, "both": 1.0}

    def computes(self, name: str, training: bool, share: Share) -> bool:
        """Whether all cells of a class are computed, or rows that stand for them."""
        return not training or share.weights[name] > 0

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log the loss, and the negative log-likelihood of every class, in bits a cell, from all workers' sums."""
        sums = Sums(logging_outputs)
        sums.log_bits("loss", "loss", "sample_size")
        sums.log_bits("nll_loss", "nll_loss", "sample_size")
        sums.log_perplexity("sample_size")
        for name in CLASSES:
            sums.log_bits(name, f"{name}_nll", f"{name}_count")

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every entry is a sum, so fairseq may add them up across workers."""
        return True


def sampled_rows(rows: str) -> Optional[int]:
    """R of ``--bang-rows sample:R``; None for ``all``."""
    if rows == "all":
        return None
    kind, _, number = rows.partition(":")
    if kind != "sample" or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--bang-rows {rows}: give all, or sample:R with R random rows of a sentence, from 1 up")
    return int(number)


def classes(cells, starts: Tensor, sees_bos: bool) -> Dict[str, Tensor]:
    """Which of the cells (C,) are of a class, bool: ``ar``, ``nar`` and their common ``both``, and ``bridge``."""
    ar = cells.offset.eq(0) & ~cells.blind
    nar = starts[cells.sentence, cells.start]
    if not sees_bos:  # row 0 is NAR where it is blind; with the start token it is AR
        nar = nar & (cells.blind | cells.start.gt(0))
    return {"ar": ar, "nar": nar, "both": ar & nar, "bridge": ~ar & ~nar}


def count_cells(real: Tensor, full: Tensor, starts: Tensor, sees_bos: bool) -> Dict[str, Tensor]:
    """How many cells each class has, computed or not; the arguments are (B, T)."""
    both = starts if sees_bos else starts[:, 1:]
    return {"ar": real.sum(), "nar": full[starts].sum(), "both": both.sum(), "bridge": (full[real & ~starts] - 1).sum()}


def cell_weights(members: Dict[str, Tensor], share: Share, sentence: Tensor) -> Tensor:
    """The weight of every computed cell (C,)."""
    weights = share.weights
    of_cells = weights["bridge"] * share.scale[sentence] * members["bridge"] + weights["both"] * members["both"]
    return sum((weights[name] * (members[name] & ~members["both"]) for name in ("ar", "nar")), of_cells)


def total_weight(counts: Dict[str, Tensor], share: Share) -> Tensor:
    """The sum of the weights of all cells, computed or not."""
    weights = share.weights
    total = weights["bridge"] * counts["bridge"] + weights["both"] * counts["both"]
    return sum((weights[name] * (counts[name] - counts["both"]) for name in ("ar", "nar")), total)
