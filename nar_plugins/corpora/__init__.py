"""Corpora made by models: distilled targets and word alignments."""
