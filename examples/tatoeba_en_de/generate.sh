#!/usr/bin/env bash
# Decode Tatoeba's test set with every trained model and score it: bash examples/tatoeba_en_de/generate.sh [WORK] [--dry-run]
# MODELS="ar kd-cmlm" leaves out the others. The outputs are in WORK/generated.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe tatoeba_en_de en de spm "${1:-}"
decode_all --beam 5
