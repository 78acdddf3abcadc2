#!/usr/bin/env bash
# Train on SQuAD question generation: bash examples/squad_qg/train.sh MODEL [UPDATES] [WORK] [FLAG ...],
# FLAGs more of fairseq-train's, MODEL one of
#   pretrain  BANG on the running text: spans hidden from the encoder, said by the decoder
#   bang      BANG on the pairs, from nothing
#   bang-pt   BANG on the pairs, from pretrain
# One checkpoint of the last two decodes with every policy. An hour on two CPU cores for all three; with an empty DEVICE on the GPU.
# A second run continues where the first one stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=${1:?pretrain, bang or bang-pt}
case $model in pretrain) updates=${2:-1500} ;; *) updates=${2:-4000} ;; esac
work=${3:-$root/work/squad_qg}
bin=${VENV:-$root/.venv}/bin

sizes=(--arch bang --max-source-positions 512 --max-target-positions 512 --dropout 0.1
       --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 --encoder-layers 3
       --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 --decoder-layers 3)
start=$work/pretrain/checkpoint_last.pt
pairs=("$work/bin" --task nar_translation --criterion bang_loss --bang-rows sample:2 --max-tokens 2048)
case $model in
    pretrain) what=("$work/raw" --task bang_pretraining --criterion bang_loss --tokens-per-sample 512 --max-tokens 4096) ;;
    bang) what=("${pairs[@]}") ;;
    bang-pt)
        [ -e "$start" ] || { echo "train.sh: bang-pt needs $start: train pretrain first" >&2; exit 2; }
        what=("${pairs[@]}" --finetune-from-model "$start") ;;
    *) echo "train.sh: no model '$model': pretrain, bang or bang-pt" >&2; exit 2 ;;
esac
"$bin/fairseq-train" "${what[@]}" --user-dir "$root/nar_plugins" "${sizes[@]}" --train-dtype auto \
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 \
    --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates $((updates / 10)) --total-num-update "$updates" \
    --max-update "$updates" --seed 1 ${DEVICE---cpu} --save-dir "$work/$model" \
    --save-interval 3 --validate-interval 3 --no-epoch-checkpoints --no-progress-bar --log-interval 50 "${@:4}"
