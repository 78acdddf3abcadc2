#!/usr/bin/env bash
# Distil Multi30k with the trained ar model, and align what comes of it: bash examples/multi30k/distill.sh [WORK]
# Makes WORK/kd, which train.sh's kd-* models are trained on. Killed and started again, it continues.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$root/work/multi30k}
bin=${VENV:-$root/.venv}/bin
"$bin/nar-distill" "$work/bin" --teacher "$work/ar/checkpoint_last.pt" --out "$work/kd" \
    --beam 5 --lenpen 1 --batch-size 64 ${DEVICE---cpu}
"$bin/nar-align" "$work/kd"
