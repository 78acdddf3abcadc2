"""From the sums that criterions log to fairseq's metrics: means over all workers and micro-batches."""

import math

from fairseq import metrics, utils


class Sums:
    """The logging outputs of one update, added up.

    Args:
        logging_outputs: dictionaries of sums, as a criterion's ``forward`` returns them; a key may be absent.
    """

    def __init__(self, logging_outputs):
        self.logging_outputs = logging_outputs

    def total(self, key: str) -> float:
        """The sum of one entry."""
        return utils.item(sum(log.get(key, 0) for log in self.logging_outputs))

    def log_mean(self, name: str, key: str, count: str, scale: float = 1.0, digits: int = 3) -> None:
        """Log ``scale`` x the mean of an entry over that of ``count``, unless there is none."""
        number = self.total(count)
        if number > 0:
            metrics.log_scalar(name, scale * self.total(key) / number, number, round=digits)

    def log_bits(self, name: str, key: str, count: str) -> None:
        """Log the mean of an entry that is in nats, in bits."""
        self.log_mean(name, key, count, 1 / math.log(2))

    def log_perplexity(self, count: str) -> None:
        """Log the perplexity of the metric ``nll_loss``, unless nothing was counted."""
        if self.total(count) > 0:
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
