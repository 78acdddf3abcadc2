"""The directed acyclic Transformer (Huang et al. 2022), with fuzzy alignment (Ma et al. 2023)."""

from nar_plugins.models.dag import model  # noqa: F401
