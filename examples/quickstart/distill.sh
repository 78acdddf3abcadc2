#!/usr/bin/env bash
# Sequence-level distillation of the quickstart's data by the trained ar model: bash examples/quickstart/distill.sh [WORK]
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/quickstart}
"$bin/nar-distill" "$work/bin" --teacher "$work/ar/checkpoint_last.pt" --out "$work/kd" --beam 1 --batch-size 128 $device
touch "$work/kd.done"
