#!/usr/bin/env bash
# Distil Multi30k with the trained ar model (Kim and Rush 2016) and align the result for fertilities: bash examples/multi30k/distill.sh [WORK]
# Makes WORK/kd, which train.sh's kd-* models are trained on. Killed and started again, it continues.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/multi30k}
"$bin/nar-distill" "$work/bin" --teacher "$work/ar/checkpoint_last.pt" --out "$work/kd" \
    --beam 5 --lenpen 1 --batch-size 64 $device
"$bin/nar-align" "$work/kd"
