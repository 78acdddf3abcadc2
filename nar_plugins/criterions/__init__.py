"""Criterions: they weigh and add the parts of the loss that a model returns, and log every part by its name."""

from nar_plugins.criterions import bang_loss, blockwise_loss  # noqa: F401
from nar_plugins.criterions.nar_loss import register_loss_part  # noqa: F401
