"""The loss of the non-autoregressive models: word and length parts, per predicted token of the global batch."""
import math
from dataclasses import dataclass, field

from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass


@dataclass
class NarLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of the word loss, spread over the whole vocabulary"}
    )
    length_loss_factor: float = field(
        default=1.0,
        metadata={"help": "weight of the length loss of a sentence beside the word loss of a token (1, as in Mask-Predict)"},
    )


@register_criterion("nar_loss", dataclass=NarLossConfig)
class NarLoss(FairseqCriterion):
    """(sum of the words' losses + factor x sum of the lengths' losses) / predicted tokens of all workers and micro-batches.

    So every predicted token weighs the same, however the global batch is cut; a mean per micro-batch would not do that.
    (Mask-Predict release, ``label_smoothed_length_cross_entropy.py``.)
    """

    def __init__(self, task, label_smoothing: float, length_loss_factor: float):
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")
        self.label_smoothing = label_smoothing
        self.length_loss_factor = length_loss_factor

    def forward(self, model, sample, reduce=True):
        """Loss (summed), its denominator (the predicted tokens) and what to log, of one batch."""
        if not hasattr(model, "losses"):
            raise ValueError("--criterion nar_loss trains this package's models; for an AR model use cross_entropy's kin")
        parts = model.losses(model(**sample["net_input"], target=sample["target"]), self.label_smoothing)
        loss = parts["words"].loss
        if "length" in parts:
            loss = loss + self.length_loss_factor * parts["length"].loss
        predicted = parts["words"].count
        logs = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": predicted,
        }
        for name, part in parts.items():
            logs.update({f"{name}_loss": part.loss.detach(), f"{name}_nll": part.nll, f"{name}_count": part.count})
        return loss, predicted, logs

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log the loss, and of every part its mean in bits, from the sums of all workers and micro-batches."""

        def total(key):
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        def log_mean(name, value, count):
            if count > 0:
                metrics.log_scalar(name, value / count / math.log(2), count, round=3)

        log_mean("loss", total("loss"), total("sample_size"))
        log_mean("nll_loss", total("words_nll"), total("words_count"))
        for key in sorted({k for log in logging_outputs for k in log if k.endswith("_loss")}):
            log_mean(key[: -len("_loss")], total(key), total(f"{key[:-len('_loss')]}_count"))
        if total("words_count") > 0:
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every entry is a sum, so fairseq may add them up across workers."""
        return True
