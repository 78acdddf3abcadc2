"""Corpora that models make: distilled targets, and word alignments with fertilities."""
