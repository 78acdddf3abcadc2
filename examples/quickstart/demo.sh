#!/usr/bin/env bash
# A page on which the quickstart's trained models write: packs each of them, and starts nar-demo.
#     bash examples/quickstart/demo.sh [MODELS] [WORK] [PORT]      (MODELS with commas; default: all that are trained)
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${2:-$root/work/quickstart}
models=${1:-}
port=${3:-8000}
if [ -z "$models" ]; then
    for model in ar cmlm blockwise ctc dag bang nat; do
        if [ -e "$work/$model/checkpoint_last.pt" ]; then models+=,$model; fi
    done
fi
[ -n "$models" ] || fail "no model in $work: run scripts/quickstart.sh first"

declare -a systems
for model in ${models//,/ }; do
    checkpoint=$work/$model/checkpoint_last.pt packed=$work/packed/$model
    [ -e "$checkpoint" ] || fail "no model $model in $work: train it first"
    if [ "$checkpoint" -nt "$packed/config.json" ]; then
        mkdir -p "$work/packed"
        rm -rf "$packed"
        "$bin/nar-pack" "$checkpoint" --data "$work/bin" --spm "$work/spm.model" --out "$packed"
    fi
    case $model in
        ar) systems+=(--system "Autoregressive" "$packed" "--beam 1") ;;
        cmlm) systems+=(--system "Mask-Predict" "$packed" "--iterations 6 --length-weight 1") ;;
        blockwise) systems+=(--system "Blockwise" "$packed" "--beam 1") ;;
        ctc) systems+=(--system "CTC" "$packed" "") ;;
        dag) systems+=(--system "DAG" "$packed" "--dedup token") ;;
        bang) systems+=(--system "BANG, adaptive" "$packed" "--bang-policy adaptive"
                     --system "BANG, one pass" "$packed" "--bang-policy nar --max-len-a 1.5 --max-len-b 10") ;;
        *) systems+=(--system "$model" "$packed" "") ;;
    esac
done
"$bin/nar-demo" "${systems[@]}" --flags "$device" --port "$port"
