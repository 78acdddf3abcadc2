"""Decoding from left to right, one or several tokens a pass."""
