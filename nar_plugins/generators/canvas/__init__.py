"""Decoding of models that predict a whole canvas at once."""
