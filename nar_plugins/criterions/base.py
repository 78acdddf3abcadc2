"""The base of all criterions: it sums and logs the parts of the loss that a model's ``forward`` returns."""

import math
from typing import Dict

from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion
from torch import Tensor
from torch.nn import Module

from nar_plugins.models.pairing import is_one_of
from nar_plugins.modules.losses import LossPart


class PartsCriterion(FairseqCriterion):
    """Sum over parts of factor x loss / sum over parts of weight x targets, over the global batch.

    Every target has the same weight, however the batch is split over workers and micro-batches; a mean per micro-batch
    would weigh targets of small ones more. The model's ``forward`` computes the losses, because data-parallel training
    collects gradients, and gathers sharded parameters, around that call only.

    The logs have ``loss``; ``nll_loss`` and ``ppl``, without smoothing, of the targets with a weight; for every part
    its mean in bits per target; and the accuracy in percent of a part with ``correct``.
    """

    wrong_model = None  # the error for a model that does not name this criterion; None: any model is accepted
    part_metric, part_value = "{}", "loss"  # a part's metric name, and whether it logs the loss or the nll

    def objective(self, model: Module, sample: Dict):
        """The objective passed to ``forward``; ``model`` has no wrappers of data-parallel training."""
        raise NotImplementedError(f"{type(self).__name__} defines no objective")

    def factors(self, model: Module, parts: Dict[str, LossPart]) -> Dict[str, float]:
        """The factor of each part in the loss; 1 for parts that are not named."""
        return {}

    def logged(self, model: Module, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """The parts to log. Their names must be the same on all workers and in all updates."""
        return parts

    def forward(self, model, sample, reduce=True):
        """The summed loss of a batch, its denominator (the weighted number of targets), and the logging output."""
        plain = unwrapped(model)
        if self.wrong_model is not None and not is_one_of(type(self), getattr(plain, "criterions", ())):
            raise ValueError(self.wrong_model)
        objective = self.objective(plain, sample)
        parts = model(**sample["net_input"], target=sample["target"], objective=objective)
        if not (isinstance(parts, dict) and any(part.weight for part in parts.values())):
            raise ValueError(
                f"{type(plain).__name__}.forward must return its losses, a LossPart for every name, and one of them at "
                "least must have a weight"
            )
        factors = self.factors(plain, parts)
        loss = sum(factors.get(name, 1.0) * part.loss for name, part in parts.items())
        sample_size = sum(part.weight * part.count for part in parts.values())
        logs = {
            "loss": loss.detach(),
            "nll_loss": sum(part.weight * part.nll for part in parts.values()),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        for name, part in self.logged(plain, parts).items():
            logs.update({f"{name}_loss": detached(part.loss), f"{name}_nll": part.nll, f"{name}_count": part.count})
            if part.correct is not None:
                logs[f"{name}_correct"] = part.correct
            if part.skipped is not None:
                logs["skipped"] = logs.get("skipped", 0) + part.skipped
        return loss, sample_size, logs

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log means over the global batch, from the sums of all workers and micro-batches."""

        def total(key: str) -> float:
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        def log_mean(metric: str, key: str, count: str, scale: float = 1 / math.log(2), digits: int = 3) -> None:
            number = total(count)
            if number > 0:
                metrics.log_scalar(metric, scale * total(key) / number, number, round=digits)

        log_mean("loss", "loss", "sample_size")
        log_mean("nll_loss", "nll_loss", "sample_size")
        keys = dict.fromkeys(key for log in logging_outputs for key in log)
        for name in (key[: -len("_count")] for key in keys if key.endswith("_count")):
            log_mean(cls.part_metric.format(name), f"{name}_{cls.part_value}", f"{name}_count")
            if f"{name}_correct" in keys:
                log_mean(f"acc_{name}", f"{name}_correct", f"{name}_count", scale=100, digits=2)
        if total("sample_size") > 0:
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        if total("skipped") > 0:
            metrics.log_scalar_sum("skipped", total("skipped"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: every entry is a sum, which fairseq may add over workers."""
        return True


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise unless label smoothing is in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")


def detached(loss):
    """A loss without gradient, for the logs; an absent part has the number 0."""
    return loss.detach() if isinstance(loss, Tensor) else loss


def unwrapped(model: Module) -> Module:
    """The model without the wrappers of data-parallel training.

    fairseq wraps twice: the model in DistributedDataParallel, and that in a proxy.
    """
    while isinstance(getattr(model, "module", None), Module):
        model = model.module
    return model
