"""Decoding of models that predict all positions of a canvas at once."""
