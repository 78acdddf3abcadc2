"""Data as pure functions: noise makes a decoder input of a target, a canvas is the blank one of generation."""

from nar_plugins.data import wordpiece  # noqa: F401  (registers --bpe wordpiece)
