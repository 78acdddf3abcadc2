#!/usr/bin/env bash
# Train one of the quickstart's models: bash examples/quickstart/train.sh MODEL [WORK], MODEL ar or cmlm.
# A second run continues where the first one stopped, and does nothing when it was done.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=${1:?ar or cmlm}
work=${2:-$root/work/quickstart}
bin=${VENV:-$root/.venv}/bin

sizes=(--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 --encoder-layers 2
       --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 --decoder-layers 2
       --share-all-embeddings --dropout 0.1)
case $model in
    ar) what=(--arch transformer --criterion label_smoothed_cross_entropy); updates=500 ;;
    cmlm) # in fairseq's form, which is the AR model's own, so that both sides can start from it: minutes instead of an hour
        ar=$work/ar/checkpoint_last.pt
        [ -e "$ar" ] || { echo "train.sh: cmlm starts from ar, and there is no $ar: train ar first" >&2; exit 2; }
        what=(--arch cmlm --criterion nar_loss --init-encoder-from "$ar" --init-decoder-from "$ar"); updates=700 ;;
    *) echo "train.sh: no model '$model': ar or cmlm" >&2; exit 2 ;;
esac
if [ -e "$work/$model/done" ]; then echo "$model: trained already"; exit 0; fi
"$bin/fairseq-train" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation \
    "${what[@]}" "${sizes[@]}" --train-dtype bfloat16 --label-smoothing 0.1 \
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 \
    --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 300 --warmup-init-lr 1e-7 \
    --max-tokens 4096 --max-update "$updates" --seed 1 ${DEVICE---cpu} \
    --save-dir "$work/$model" --save-interval 4 --validate-interval 4 --no-epoch-checkpoints \
    --no-progress-bar --log-interval 50
touch "$work/$model/done"
