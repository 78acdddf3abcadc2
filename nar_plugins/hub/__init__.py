"""Trained models from Python: ``from_pretrained(path).translate(["..."])``, of a checkpoint or a packed folder.

``docs/hub.md`` is the guide. ``decoder.py`` is the one loader, also of ``nar-bench`` and ``nar-distill``.
"""

from nar_plugins.hub.batcher import Batcher
from nar_plugins.hub.translator import Translation, Translator, from_pretrained

__all__ = ["Batcher", "Translation", "Translator", "from_pretrained"]
