#!/usr/bin/env bash
# Decode Multi30k's test set with every trained model: bash examples/multi30k/generate.sh [WORK] [--dry-run]
# The stock cmlm_transformer is decoded by fairseq's own loop, with as many passes and length candidates as ours.
# MODELS="ar kd-cmlm" leaves out the others; SENTENCES=50,320 are timed at batch 1 and 32.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe multi30k en de spm "${1:-}"

stock() {  # passes, passes after the first -> BLEU and chrF of fairseq's own model and loop
    into "$work/stock.$1.out" "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task translation_lev $device \
        --path "$work/stock/checkpoint_last.pt" --batch-size 32 --required-batch-size-multiple 1 \
        --iter-decode-max-iter "$2" --iter-decode-force-max-iter --iter-decode-with-beam 5 --beam 1 \
        --remove-bpe sentencepiece
    echo "stock cmlm_transformer, R = $1"
    run "$bin/nar-score" "$work/stock.$1.out" "$reference"
}
if is_there stock; then stock 1 0; stock 4 3; stock 10 9; fi

ar=$work/ar/checkpoint_last.pt
systems=()
compare "AR greedy" ar "--beam 1"
compare "AR beam 5" ar "--beam 5"
compare_int8 "AR greedy, blockwise by frozen heads" kd-frozen "--beam 1"
compare "CMLM, R = 1" cmlm "--iterations 1"
compare "CMLM, R = 4" cmlm "--iterations 4"
compare "CMLM, R = 10" cmlm "--iterations 10"
compare "CMLM, confidence" cmlm "--schedule confidence"
compare "KD: AR greedy" kd-ar "--beam 1"
compare "KD: AR beam 5" kd-ar "--beam 5"
compare "KD: blockwise" kd-block "--beam 1"
compare_int8 "KD: NAT, fertility argmax" kd-nat ""
compare_onnx "KD: NAT, fertility argmax" kd-nat ""
compare "KD: NAT, fertility average" kd-nat "--fertility average"
for candidates in 2 10; do
    compare "KD: NAT, NPD $candidates" kd-nat "--generator noisy_parallel --fertility-samples $candidates --rescorer $ar"
done
compare "KD: NAT, fine-tuned" kd-nat-ft ""
compare "KD: NAT, fine-tuned, NPD 10" kd-nat-ft "--generator noisy_parallel --fertility-samples 10 --rescorer $ar"
compare "KD: vanilla + glancing" kd-glat ""
compare "KD: vanilla + glancing, 5 lengths rescored" kd-glat "--length-beam 5 --rescorer $ar"
compare_int8 "KD: CTC + glancing" kd-ctc ""
compare_onnx "KD: CTC + glancing" kd-ctc ""
compare "KD: CTC + glancing, CTC beam 10" kd-ctc "--ctc-beam 10"
compare "KD: CTC + glancing, pruned" kd-ctc-pruned ""
compare "KD: CTC + glancing, 2 of 3 layers" kd-ctc-small ""
compare "KD: CTC + glancing, CTC beam 10 rescored" kd-ctc "--ctc-beam 10 --rescorer $ar"
graphs() {  # NAME MODEL
    compare "$1, greedy" "$2" "--dag-decode greedy --dedup token"
    compare_int8 "$1, lookahead" "$2" "--dedup token"
    compare "$1, Viterbi" "$2" "--dag-decode viterbi --dedup token"
    compare "$1, joint Viterbi" "$2" "--dag-decode joint-viterbi --dedup token"
    compare "$1, joint Viterbi, 5 lengths rescored" "$2" "--dag-decode joint-viterbi --length-beam 5 --dedup token --rescorer $ar"
}
graphs "DAG" dag
graphs "KD: DAG" kd-dag
for passes in 1 4 10; do compare "KD: CMLM, R = $passes" kd-cmlm "--iterations $passes"; done
weighted="--iterations 10 --length-weight 1"
compare_int8 "KD: CMLM, R = 10, lengths weighted" kd-cmlm "$weighted"
compare_onnx "KD: CMLM, R = 10, lengths weighted" kd-cmlm "$weighted"
for threshold in 0.8 0.9; do
    compare "KD: CMLM, lengths weighted, commits at $threshold" kd-cmlm "$weighted --schedule confidence --confidence-threshold $threshold"
done
compare_int8 "KD: CMLM, 2 lengths weighted, commits at 0.8" kd-cmlm \
    "$weighted --length-beam 2 --schedule confidence --confidence-threshold 0.8"
compare "KD: CMLM, R = 10, 5 lengths rescored" kd-cmlm "--iterations 10 --rescorer $ar"
compare "KD: AR 12-1 beam 5" kd-ar-12-1 "--beam 5"
compare "KD: BANG, greedy" kd-bang "--bang-policy ar --beam 1 --max-len-a 1.5 --max-len-b 10"
for tau in 0.9 0.7; do
    compare_int8 "KD: BANG, adaptive at $tau" kd-bang "--bang-policy adaptive --bang-tau $tau --max-len-a 1.5 --max-len-b 10"
done
compare "KD: BANG, verify" kd-bang "--bang-policy verify --max-len-a 1.5 --max-len-b 10"
compare "KD: BANG, one pass" kd-bang "--bang-policy nar --max-len-a 1.5 --max-len-b 10"
amount=(--sentences "${SENTENCES:-50,320}")
if [ -n "$mini" ]; then amount=(--sentences 4,20 --repeats 1); fi
run "$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece" --reference "$reference" "${amount[@]}" "${systems[@]}"
