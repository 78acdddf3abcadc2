#!/usr/bin/env bash
# Train on Multi30k: bash examples/multi30k/train.sh MODEL [UPDATES] [WORK], MODEL one of
#   ar      fairseq's transformer, the baseline and teacher
#   cmlm    Mask-Predict, in the form of its release
#   stock   fairseq's own cmlm_transformer under its own task, to compare with
# All have the same sizes, data, tokens a batch and learning rate; ar trains in bfloat16, the two that are compared in float32. A second run continues where the first one stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=${1:?ar, cmlm or stock}
case $model in ar) updates=${2:-600} ;; *) updates=${2:-1350} ;; esac
work=${3:-$root/work/multi30k}
bin=${VENV:-$root/.venv}/bin

sizes=(--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 --encoder-layers 3
       --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 --decoder-layers 3
       --share-all-embeddings --dropout 0.1)
recipe=(--optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 --lr 1e-3 --lr-scheduler inverse_sqrt
        --warmup-updates 400 --warmup-init-lr 1e-7 --label-smoothing 0.1 --max-tokens 4096
        --max-update "$updates" --seed 1)
saving=(--save-dir "$work/$model" --save-interval 3 --no-epoch-checkpoints
        --no-progress-bar --log-interval 100)
ours=(--user-dir "$root/nar_plugins" --task nar_translation)
case $model in
    ar) what=("${ours[@]}" --arch transformer --criterion label_smoothed_cross_entropy --train-dtype bfloat16) ;;
    cmlm) what=("${ours[@]}" --arch cmlm_iwslt_de_en --criterion nar_loss) ;;
    stock) # its checkpoints do not load under PyTorch 2.6 and later without our user-dir, which only allows them here
        what=(--user-dir "$root/nar_plugins" --task translation_lev --arch cmlm_transformer --noise random_mask
              --criterion nat_loss --fixed-validation-seed 7) ;;
    *) echo "train.sh: no model '$model': ar, cmlm or stock" >&2; exit 2 ;;
esac
"$bin/fairseq-train" "$work/bin" "${what[@]}" "${sizes[@]}" "${recipe[@]}" "${saving[@]}" ${DEVICE---cpu}
