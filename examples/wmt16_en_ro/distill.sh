#!/usr/bin/env bash
# WMT16 with the translations of the model ar as targets, in WORK/kd: bash examples/wmt16_en_ro/distill.sh [WORK] [--dry-run]
# TEACHER=CHECKPOINT of the same dictionary takes another teacher.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt16_en_ro en ro bpe "${1:-}"
distil --beam 5
