"""BANG (Qi et al. 2021): one decoder for autoregressive, non-autoregressive and every decoding between."""

from nar_plugins.models.bang import model  # noqa: F401
