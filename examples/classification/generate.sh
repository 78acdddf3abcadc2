#!/usr/bin/env bash
# Say the labels of the test set in one pass, and count: bash examples/classification/generate.sh [WORK]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$root/work/classification}
bin=${VENV:-$root/.venv}/bin
for policy in nar ar; do
    "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation ${DEVICE---cpu} \
        --path "$work/bang/checkpoint_best.pt" --generator bang --bang-policy "$policy" --beam 1 --max-len-a 0 --max-len-b 8 \
        --batch-size 128 --remove-bpe sentencepiece > "$work/$policy.out" 2> "$work/$policy.err" ||
        { tail -n 20 "$work/$policy.err" >&2; exit 1; }
    "$bin/python" "$root/examples/classification/accuracy.py" "$work/$policy.out" "$work/test.label"
done
