#!/usr/bin/env bash
# Decode SQuAD's test sentences with every policy, from one checkpoint: bash examples/squad_qg/generate.sh [MODELS] [WORK]
# Prints passes, wasted masks and speed (nar-bench), then quality (score.py; needs pip install -e ".[qg]"), for every policy and
# for several thresholds tau of adaptive; where matplotlib is (".[plots]"), WORK/tau.png shows BLEU against passes.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
models=${1:-bang,bang-pt}
work=${2:-$root/work/squad_qg}
common="$device --generator bang --max-len-a 0 --max-len-b 50 --remove-bpe sentencepiece"

declare -a systems outputs
add() {  # name, model, flags: a system of the table
    systems+=(--system "$1" "$work/$2/checkpoint_last.pt" "$3")
    outputs+=("$work/out/$1.txt")
}
for model in ${models//,/ }; do
    [ -e "$work/$model/checkpoint_last.pt" ] || fail "no model $model in $work: train it first"
    add "$model, ar" "$model" "--bang-policy ar --beam 1"
    add "$model, ar, beam 5" "$model" "--bang-policy ar --beam 5"
    add "$model, nar" "$model" "--bang-policy nar"
    for size in 2 4; do add "$model, block $size" "$model" "--bang-policy block --bang-block $size"; done
    add "$model, prefix 1" "$model" "--bang-policy prefix --bang-prefix 1"
    for tau in 0.1 0.2 0.3 0.5 0.7 0.9; do add "$model, adaptive $tau" "$model" "--bang-policy adaptive --bang-tau $tau"; done
    add "$model, verify" "$model" "--bang-policy verify --bang-block 4"
    for score in -0.5 -1.5; do add "$model, cascade $score" "$model" "--bang-policy cascade --bang-min-score=$score"; done
done
plot=()
if "$bin/python" -c "import matplotlib" 2> /dev/null; then plot=(--plot "$work/tau.png"); fi
"$bin/nar-bench" "$work/bin" --flags "$common" --reference "$work/test.question" --sentences "${SENTENCES:-50,320}" \
    --output "$work/out" "${systems[@]}" ${plot[@]+"${plot[@]}"}
"$bin/python" "$root/examples/squad_qg/score.py" "$work/test.question" "${outputs[@]}" --sources "$work/test.sentence"
