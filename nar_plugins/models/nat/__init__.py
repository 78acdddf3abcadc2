"""The non-autoregressive Transformer (Gu et al. 2018), vanilla, glancing and CTC models."""

from nar_plugins.models.nat import model  # noqa: F401
