"""What a run is: dictionaries, data, noise, which generator, BLEU in validation."""

from nar_plugins.tasks import bang_pretraining, nar_translation  # noqa: F401
