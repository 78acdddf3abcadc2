#!/usr/bin/env bash
# Decode newstest2014 with every trained model, as its paper does, and score it: bash examples/wmt14_en_de/generate.sh [WORK] [--dry-run]
# MODELS="ar kd-cmlm" leaves out the others. The outputs are in WORK/generated.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt14_en_de en de bpe "${1:-}"
decode_all --beam 4 --lenpen 0.6  # Vaswani et al. 2017, section 6.1, also for the mean of the last five checkpoints
