"""Decoding from left to right, one token or several a pass."""
