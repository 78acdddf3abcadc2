#!/usr/bin/env bash
# Label the test set, in one pass and token by token, and count the right labels: bash examples/classification/generate.sh [WORK]
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/classification}
for policy in nar ar; do
    into "$work/$policy.out" "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" \
        --task nar_translation $device --path "$work/bang/checkpoint_best.pt" --generator bang --bang-policy "$policy" --beam 1 \
        --max-len-a 0 --max-len-b 8 --batch-size 128 --remove-bpe sentencepiece
    "$bin/python" "$root/examples/classification/accuracy.py" "$work/$policy.out" "$work/test.label"
done
