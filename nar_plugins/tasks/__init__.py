"""What a run is: dictionaries, data, noise, which generator, BLEU in validation."""
from nar_plugins.tasks import nar_translation  # noqa: F401
