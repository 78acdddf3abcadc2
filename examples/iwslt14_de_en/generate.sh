#!/usr/bin/env bash
# Decode IWSLT14's test set with every trained model, as its paper does, and score it: bash examples/iwslt14_de_en/generate.sh [WORK] [--dry-run]
# MODELS="ar kd-cmlm" leaves out the others. The outputs are in WORK/generated. Both scores are of lower-cased text.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe iwslt14_de_en de en bpe "${1:-}"
reference=$work/test.lower.$target
decode_all --beam 5
