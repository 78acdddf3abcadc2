"""The tasks: dictionaries, data, noise, the choice of a generator, BLEU in validation."""

from nar_plugins.tasks import bang_pretraining, translation  # noqa: F401
