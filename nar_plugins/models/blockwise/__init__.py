"""Blockwise parallel decoding (Stern et al. 2018): an autoregressive model with proposal heads."""

from nar_plugins.models.blockwise import model  # noqa: F401
