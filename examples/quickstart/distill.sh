#!/usr/bin/env bash
# The quickstart's data as the trained ar model translates them: bash examples/quickstart/distill.sh [WORK]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$root/work/quickstart}
bin=${VENV:-$root/.venv}/bin
"$bin/nar-distill" "$work/bin" --teacher "$work/ar/checkpoint_last.pt" --out "$work/kd" --beam 1 --batch-size 128 ${DEVICE---cpu}
touch "$work/kd.done"
