#!/usr/bin/env bash
# Train a classifier that generates its label: bash examples/classification/train.sh [UPDATES] [WORK]
# START=CKPT fine-tunes a pre-trained bang of the same sizes and dictionary. Minutes on two CPU cores; with an empty DEVICE on the GPU.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
updates=${1:-200}
work=${2:-$root/work/classification}
start=()
if [ -n "${START:-}" ]; then start=(--finetune-from-model "$START"); fi
"$bin/fairseq-train" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation --arch bang --criterion bang_loss \
    --max-source-positions 512 --max-target-positions 512 --dropout 0.2 \
    "${small[@]}" --encoder-layers 3 --decoder-layers 3 \
    ${start[@]+"${start[@]}"} --train-dtype auto --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 \
    --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates 200 --warmup-init-lr 1e-7 --max-tokens 4096 \
    --max-update "$updates" --seed 1 $device --save-dir "$work/bang" --no-epoch-checkpoints --no-progress-bar \
    --log-interval 50
