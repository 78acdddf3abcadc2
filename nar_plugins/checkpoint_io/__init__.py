"""Checkpoints: safe loading, checks of dictionaries, initialisation, conversion, averaging and teachers."""
