"""Models made ready for decoding: weights packed, cast or quantised once; the door is ``prepare.py``."""
