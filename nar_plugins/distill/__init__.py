"""What surrounds training with other data than the real text: teacher output, word alignments."""
