#!/usr/bin/env bash
# fairseq-generate for the trained models, then the table, a plot and a page of outputs in WORK:
#     bash examples/quickstart/generate.sh [MODELS] [WORK]
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
models=${1:-ar,blockwise,ctc,dag,cmlm,nat,bang}
work=${2:-$root/work/quickstart}

declare -a systems
for model in ${models//,/ }; do
    checkpoint=$work/$model/checkpoint_last.pt
    [ -e "$checkpoint" ] || fail "no model $model in $work: train it first"
    into "$work/$model.out" "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation $device \
        --path "$checkpoint" --batch-size 32 --remove-bpe sentencepiece
    echo "fairseq-generate, $model: $(grep -c ^H- "$work/$model.out") hypotheses in $work/$model.out, for example"
    grep -m 3 "^D-" "$work/$model.out" | cut -f 3
    case $model in
        ar) systems+=(--system "AR greedy" "$checkpoint" "--beam 1" --system "AR beam 5" "$checkpoint" "--beam 5") ;;
        blockwise) systems+=(--system "AR, blockwise" "$checkpoint" "--beam 1") ;;
        cmlm) for passes in 1 4 10; do
                 systems+=(--system "CMLM, R = $passes" "$checkpoint" "--iterations $passes --length-weight 1")
             done
             systems+=(--system "CMLM, R = 10, lengths not weighted" "$checkpoint" "--iterations 10"
                     --system "CMLM, commits at 0.9" "$checkpoint" "--schedule confidence --length-weight 1") ;;
        nat) systems+=(--system "NAT, fertilities" "$checkpoint" ""
                    --system "NAT, NPD 10" "$checkpoint" "--generator noisy_parallel --rescorer $work/ar/checkpoint_last.pt") ;;
        bang) length="--max-len-a 1.5 --max-len-b 10"  # a one-pass policy computes a mask for every position up to the limit
              systems+=(--system "BANG, adaptive" "$checkpoint" "--bang-policy adaptive $length"
                     --system "BANG, one pass" "$checkpoint" "--bang-policy nar $length"
                     --system "BANG, verify" "$checkpoint" "--bang-policy verify $length"
                     --system "BANG, greedy" "$checkpoint" "--bang-policy ar --beam 1 $length") ;;
        ctc) systems+=(--system "CTC + glancing, one pass" "$checkpoint" "")
             if int8_runs; then systems+=(--system "CTC + glancing, one pass, int8" "$checkpoint" "--decode-dtype int8"); fi
             systems+=(--system "CTC beam 5, rescored by AR" "$checkpoint" "--ctc-beam 5 --rescorer $work/ar/checkpoint_last.pt") ;;
        dag) systems+=(--system "DAG, lookahead" "$checkpoint" "--dedup token"
                    --system "DAG, joint Viterbi" "$checkpoint" "--dag-decode joint-viterbi --dedup token"
                    --system "DAG, 5 lengths rescored by AR" "$checkpoint"
                             "--dag-decode joint-viterbi --length-beam 5 --dedup token --rescorer $work/ar/checkpoint_last.pt") ;;
    esac
done
"$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece" \
    --sentences 48,192 --reference "$work"/test.de "$work"/test.de.* --output "$work/outputs" \
    --plot-speed "$work/speed.png" --examples "$work/examples.md" "${systems[@]}"
