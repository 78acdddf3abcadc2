"""Criterions: they sum the parts of the loss that a model returns, and log every part by its name."""

from nar_plugins.criterions import bang_loss, blockwise_loss, nar_loss  # noqa: F401
