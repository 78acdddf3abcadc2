#!/usr/bin/env bash
# Tatoeba with the translations of the model ar as targets, in WORK/kd: bash examples/tatoeba_en_de/distill.sh [WORK] [--dry-run]
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe tatoeba_en_de en de spm "${1:-}"
distil --beam 5
