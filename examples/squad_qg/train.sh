#!/usr/bin/env bash
# Train on SQuAD question generation: bash examples/squad_qg/train.sh MODEL [UPDATES] [WORK] [FLAG ...],
# FLAGs more of fairseq-train's, MODEL one of
#   bang-ar        BANG on the pairs, from random weights, the autoregressive objective only (--ngram 1)
#   bang           bang-ar, fine-tuned with the full objective on questions that bang-ar has generated
#   pretrain-ar    BANG on the running text: spans masked in the encoder and predicted by the decoder, autoregressively
#   pretrain       pretrain-ar, trained on with the full objective
#   bang-pt-ar     pretrain, fine-tuned autoregressively on the questions of bang-ar
#   bang-pt        bang-pt-ar, fine-tuned with the full objective on the same
# Trained from scratch, the full objective ignores the source for a long time; hence the autoregressive stages. Several tokens
# at once need targets with less variety than people's questions have; hence sequence-level distillation.
# One checkpoint of bang or bang-pt decodes with every policy. With an empty DEVICE on the GPU.
# A second run continues where the first one stopped.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
models="bang-ar, bang, pretrain-ar, pretrain, bang-pt-ar or bang-pt"
model=${1:?$models}
work=${3:-$root/work/squad_qg}

sizes=(--arch bang "${small[@]}" --encoder-layers 3 --decoder-layers 3 --dropout 0.1
       --max-source-positions 512 --max-target-positions 512)
text=("$work/raw" --task bang_pretraining --tokens-per-sample 512 --max-tokens 4096)
pairs=(--task nar_translation --max-tokens 2048)
case $model in  # data and objective, the model to start from, the number of updates
    bang-ar) what=("$work/bin" "${pairs[@]}" --ngram 1); before=; default=3000 ;;
    bang) what=("$work/kd" "${pairs[@]}" --bang-rows sample:2); before=bang-ar; default=1000 ;;
    pretrain-ar) what=("${text[@]}" --ngram 1); before=; default=1500 ;;
    pretrain) what=("${text[@]}"); before=pretrain-ar; default=400 ;;
    bang-pt-ar) what=("$work/kd" "${pairs[@]}" --ngram 1); before=pretrain; default=1000 ;;
    bang-pt) what=("$work/kd" "${pairs[@]}" --bang-rows sample:2); before=bang-pt-ar; default=600 ;;
    *) fail "no model '$model': $models" ;;
esac
updates=${2:-$default}
start=()
if [ -n "$before" ]; then
    [ -e "$work/$before/checkpoint_last.pt" ] || fail "$model starts from $before: train that first"
    start=(--finetune-from-model "$work/$before/checkpoint_last.pt")
fi
if [ "${what[0]}" = "$work/kd" ]; then
    teacher=$work/bang-ar/checkpoint_last.pt
    [ -e "$teacher" ] || fail "$model learns the questions of bang-ar: train that first"
    "$bin/nar-distill" "$work/bin" --teacher "$teacher" --out "$work/kd" --beam 5 --max-len-a 0 --max-len-b 50 --batch-size 64 \
        $device
fi
"$bin/fairseq-train" "${what[@]}" --criterion bang_loss --user-dir "$root/nar_plugins" "${sizes[@]}" --train-dtype auto \
    ${start[@]+"${start[@]}"} --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 \
    --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates $((updates / 10)) --total-num-update "$updates" \
    --max-update "$updates" --seed 1 $device --save-dir "$work/$model" \
    --save-interval 3 --validate-interval 3 --no-epoch-checkpoints --no-progress-bar --log-interval 50 "${@:4}"
