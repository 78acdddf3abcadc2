"""Checkpoints: read safely, checked against the dictionaries, started from, converted, and loaded as teachers."""
