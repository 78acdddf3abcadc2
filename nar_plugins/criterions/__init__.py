"""Criterions: they sum the weighted parts of a model's loss, and log every part by name."""

from nar_plugins.criterions import bang_loss, blockwise_loss  # noqa: F401
from nar_plugins.criterions.nar_loss import register_loss_part  # noqa: F401
