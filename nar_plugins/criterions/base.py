"""The criterion of a model whose ``forward`` returns its losses: it weighs, adds and logs the parts by name."""

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

    Every target weighs the same, however the batch is cut over workers and micro-batches; a mean per micro-batch would
    not do that. The losses are computed inside the model's ``forward``: data-parallel training collects gradients
    around that call, and gathers parameters that are sharded for it only.

    Logged are ``loss``, ``nll_loss`` and ``ppl``, without smoothing, of the targets that count, and of every part its
    mean in bits and, where the part has ``correct``, its accuracy in percent.
    """

    wrong_model = None  # the message for a model that does not name this criterion; None: every model may be tried
    part_metric, part_value = "{}", "loss"  # the metric of a part, and what its mean is of: the loss or the nll

    def objective(self, model: Module, sample: Dict):
        """What ``forward`` is asked; ``model`` is without the wrappers of data-parallel training."""
        raise NotImplementedError(f"{type(self).__name__} defines no objective")

    def factors(self, model: Module, parts: Dict[str, LossPart]) -> Dict[str, float]:
        """How much each part counts in the loss; 1 for those not named."""
        return {}

    def logged(self, model: Module, parts: Dict[str, LossPart]) -> Dict[str, LossPart]:
        """The parts as they are logged. All workers and updates must have the same names."""
        return parts

    def forward(self, model, sample, reduce=True):
        """Loss (summed), its denominator (the targets, weighted) and what to log, of one batch."""
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
        """Log the means of the global batch, from the sums of all workers and micro-batches."""

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
        """Every entry is a sum, so fairseq may add them up across workers."""
        return True


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise for a number that is no share."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")


def detached(loss):
    """A loss to be logged; a part that is absent has the number 0."""
    return loss.detach() if isinstance(loss, Tensor) else loss


def unwrapped(model: Module) -> Module:
    """The model itself, for what is asked of it beside the forward pass.

    fairseq wraps twice, the model in DistributedDataParallel and that in a proxy.
    """
    while isinstance(getattr(model, "module", None), Module):
        model = model.module
    return model
