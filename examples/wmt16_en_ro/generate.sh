#!/usr/bin/env bash
# Decode newstest2016 with every trained model, as its paper does, and score it: bash examples/wmt16_en_ro/generate.sh [WORK] [--dry-run]
# MODELS="ar kd-cmlm" leaves out the others. The outputs are in WORK/generated.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt16_en_ro en ro bpe "${1:-}"
decode_all --beam 5
