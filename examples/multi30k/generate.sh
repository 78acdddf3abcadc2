#!/usr/bin/env bash
# Decode Multi30k's test set with every trained model: bash examples/multi30k/generate.sh [WORK]
# The stock cmlm_transformer is decoded by fairseq's own loop, with as many passes and length candidates as ours.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/multi30k}

stock() {  # passes, passes after the first -> BLEU and chrF of fairseq's own model and loop
    into "$work/stock.$1.out" "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task translation_lev $device \
        --path "$work/stock/checkpoint_last.pt" --batch-size 32 --required-batch-size-multiple 1 \
        --iter-decode-max-iter "$2" --iter-decode-force-max-iter --iter-decode-with-beam 5 --beam 1 \
        --remove-bpe sentencepiece
    echo "stock cmlm_transformer, R = $1"
    "$bin/nar-score" "$work/stock.$1.out" "$work/test.de"
}
if [ -e "$work/stock/checkpoint_last.pt" ]; then stock 1 0; stock 4 3; stock 10 9; fi

ar=$work/ar/checkpoint_last.pt
systems=(--system "AR greedy" "$ar" "--beam 1" --system "AR beam 5" "$ar" "--beam 5")
add() {  # name, model, flags: a system to decode with, where the model has been trained
    if [ -e "$work/$2/checkpoint_last.pt" ]; then systems+=(--system "$1" "$work/$2/checkpoint_last.pt" "$3"); fi
}
add "AR greedy, blockwise by frozen heads" kd-frozen "--beam 1"
add "CMLM, R = 1" cmlm "--iterations 1"
add "CMLM, R = 4" cmlm "--iterations 4"
add "CMLM, R = 10" cmlm "--iterations 10"
add "CMLM, confidence" cmlm "--schedule confidence"
add "KD: AR greedy" kd-ar "--beam 1"
add "KD: AR beam 5" kd-ar "--beam 5"
add "KD: blockwise" kd-block "--beam 1"
add "KD: NAT, fertility argmax" kd-nat ""
add "KD: NAT, fertility average" kd-nat "--fertility average"
for candidates in 2 5 10 20 50; do
    add "KD: NAT, NPD $candidates" kd-nat "--generator noisy_parallel --fertility-samples $candidates --rescorer $ar"
done
add "KD: vanilla + glancing" kd-glat ""
add "KD: vanilla + glancing, 5 lengths rescored" kd-glat "--length-beam 5 --rescorer $ar"
add "KD: CTC + glancing" kd-ctc ""
add "KD: CTC + glancing, CTC beam 10" kd-ctc "--ctc-beam 10"
add "KD: CTC + glancing, CTC beam 10 rescored" kd-ctc "--ctc-beam 10 --rescorer $ar"
add "KD: CMLM, R = 10" kd-cmlm "--iterations 10"
"$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece" --reference "$work/test.de" --sentences 50,320 "${systems[@]}"
