#!/usr/bin/env bash
# Decode Multi30k's test set with every trained model: bash examples/multi30k/generate.sh [WORK]
# The stock cmlm_transformer is decoded by fairseq's own loop, with as many passes and length candidates as ours.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$root/work/multi30k}
bin=${VENV:-$root/.venv}/bin
device=${DEVICE---cpu}

stock() {  # passes, passes after the first -> BLEU and chrF of fairseq's own model and loop
    "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task translation_lev $device \
        --path "$work/stock/checkpoint_last.pt" --batch-size 32 --required-batch-size-multiple 1 \
        --iter-decode-max-iter "$2" --iter-decode-force-max-iter --iter-decode-with-beam 5 --beam 1 \
        --remove-bpe sentencepiece > "$work/stock.$1.out"
    echo "stock cmlm_transformer, R = $1"
    "$bin/nar-score" "$work/stock.$1.out" "$work/test.de"
}
if [ -e "$work/stock/checkpoint_last.pt" ]; then stock 1 0; stock 4 3; stock 10 9; fi

ar=$work/ar/checkpoint_last.pt
cmlm=$work/cmlm/checkpoint_last.pt
"$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece" --reference "$work/test.de" --sentences 50,0 \
    --system "AR greedy" "$ar" "--beam 1" \
    --system "AR beam 5" "$ar" "--beam 5" \
    --system "CMLM, R = 1" "$cmlm" "--iterations 1" \
    --system "CMLM, R = 4" "$cmlm" "--iterations 4" \
    --system "CMLM, R = 10" "$cmlm" "--iterations 10" \
    --system "CMLM, confidence" "$cmlm" "--schedule confidence"
