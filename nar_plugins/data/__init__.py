"""Data: dictionaries, splits, checks, training noise, and the blank canvas that generation starts from."""

from nar_plugins.data import wordpiece  # noqa: F401  (registers --bpe wordpiece)
