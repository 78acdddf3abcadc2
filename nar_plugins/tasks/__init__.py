"""What a run is: dictionaries, data, noise, which generator, BLEU in validation."""

from nar_plugins.tasks import bang_pretraining, translation  # noqa: F401
