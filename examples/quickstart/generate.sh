#!/usr/bin/env bash
# fairseq-generate for the trained models, then the table: bash examples/quickstart/generate.sh [MODELS] [WORK]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
models=${1:-ar,blockwise,cmlm,nat,ctc,bang}
work=${2:-$root/work/quickstart}
bin=${VENV:-$root/.venv}/bin

declare -a rows
for model in ${models//,/ }; do
    checkpoint=$work/$model/checkpoint_last.pt
    [ -e "$checkpoint" ] || { echo "generate.sh: no model $model in $work: train it first" >&2; exit 2; }
    "$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation ${DEVICE---cpu} \
        --path "$checkpoint" --batch-size 32 --remove-bpe sentencepiece > "$work/$model.out" 2> "$work/$model.err" ||
        { tail -n 20 "$work/$model.err" >&2; exit 1; }
    echo "fairseq-generate, $model: $(grep -c ^H- "$work/$model.out") hypotheses in $work/$model.out, for example"
    grep -m 3 "^D-" "$work/$model.out" | cut -f 3
    case $model in
        ar) rows+=(--system "AR greedy" "$checkpoint" "--beam 1" --system "AR beam 5" "$checkpoint" "--beam 5") ;;
        blockwise) rows+=(--system "AR, blockwise" "$checkpoint" "--beam 1") ;;
        cmlm) rows+=(--system "CMLM, R = 1" "$checkpoint" "--iterations 1" --system "CMLM, R = 4" "$checkpoint" "--iterations 4"
                     --system "CMLM, R = 10" "$checkpoint" "--iterations 10"
                     --system "CMLM, confidence" "$checkpoint" "--schedule confidence") ;;
        nat) rows+=(--system "NAT, fertilities" "$checkpoint" ""
                    --system "NAT, NPD 10" "$checkpoint" "--generator noisy_parallel --rescorer $work/ar/checkpoint_last.pt") ;;
        bang) length="--max-len-a 1.5 --max-len-b 10"  # one pass computes a mask for every token that there may be
              rows+=(--system "BANG, adaptive" "$checkpoint" "--bang-policy adaptive $length"
                     --system "BANG, one pass" "$checkpoint" "--bang-policy nar $length"
                     --system "BANG, verify" "$checkpoint" "--bang-policy verify $length"
                     --system "BANG, greedy" "$checkpoint" "--bang-policy ar --beam 1 $length") ;;
        ctc) rows+=(--system "NAT, CTC + glancing" "$checkpoint" "") ;;
    esac
done
"$bin/nar-bench" "$work/bin" --flags "${DEVICE---cpu} --remove-bpe sentencepiece" \
    --sentences 24,96 --reference "$work"/test.de "$work"/test.de.* "${rows[@]}"
