#!/usr/bin/env bash
# IWSLT14 with the translations of the model ar as targets, in WORK/kd: bash examples/iwslt14_de_en/distill.sh [WORK] [--dry-run]
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe iwslt14_de_en de en bpe "${1:-}"
distil --beam 5
