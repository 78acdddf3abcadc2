#!/usr/bin/env bash
# Distil Multi30k with the trained ar model (Kim and Rush 2016) and align the result for fertilities:
#     bash examples/multi30k/distill.sh [WORK] [--dry-run]
# Makes WORK/kd, which train.sh's kd-* models are trained on. Killed and started again, it continues.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe multi30k en de spm "${1:-}"
teacher=$work/ar/checkpoint_last.pt
distil --beam 5 --lenpen 1 --batch-size 64
