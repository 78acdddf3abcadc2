#!/usr/bin/env bash
# Train on Multi30k: bash examples/multi30k/train.sh MODEL [UPDATES] [WORK] [FLAG ...], MODEL one of
#   ar       fairseq's transformer, the teacher
#   cmlm     Mask-Predict, in the form of its release
#   stock    fairseq's own cmlm_transformer under its own task, to compare with
# and, on the data of distill.sh,
#   kd-ar    fairseq's transformer
#   kd-nat   NAT with fertilities, positional attention and diagonal mask
#   kd-glat  vanilla NAT (source stretched to a predicted length) with glancing
#   kd-ctc   the same with latent alignments, on a canvas of twice the source
#   kd-cmlm  Mask-Predict, in fairseq's form
#   kd-frozen  the frozen teacher with 8 sequential proposal heads; only the heads are trained, the greedy output is the teacher's
#   kd-block   kd-frozen, fine-tuned as a whole
# All have the same sizes and learning rate and, but for the last two, the same tokens per batch. All kd-* models except kd-ar
# start from the teacher's weights. A second run continues where the first one stopped. FLAGs are passed to fairseq-train and
# override those here. With RATE=falling the learning rate decays linearly to zero, as it always does for kd-block and kd-frozen.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
models="ar, cmlm, stock, kd-ar, kd-nat, kd-glat, kd-ctc, kd-cmlm, kd-frozen or kd-block"
model=${1:?$models}
case $model in ar) updates=${2:-2000} ;; kd-frozen) updates=${2:-1200} ;; kd-block) updates=${2:-3600} ;; kd-*) updates=${2:-800} ;; *) updates=${2:-3000} ;; esac
work=${3:-$root/work/multi30k}

sizes=("${small[@]}" --encoder-layers 3 --decoder-layers 3 --share-all-embeddings --dropout 0.1)
recipe=(--optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 --lr 1e-3 --max-update "$updates" --seed 1)
falling=(--lr-scheduler polynomial_decay --warmup-updates $((updates / 10)) --total-num-update "$updates")
rate=(--lr-scheduler inverse_sqrt --warmup-updates 400 --warmup-init-lr 1e-7)
case $model in kd-block | kd-frozen) rate=("${falling[@]}") ;; esac
if [ "${RATE:-}" = falling ]; then rate=("${falling[@]}"); fi
saving=(--save-dir "$work/$model" --save-interval 3 --no-epoch-checkpoints
        --no-progress-bar --log-interval 100)
ours=(--user-dir "$root/nar_plugins" --task nar_translation)
smooth=(--label-smoothing 0.1)
teacher=$work/ar/checkpoint_last.pt
taught=(--criterion nar_loss --init-encoder-from "$teacher" --init-decoder-from "$teacher")
heads=$work/kd-frozen/checkpoint_last.pt
blockwise=(--arch blockwise --block-size 8 --block-head sequential --criterion blockwise_loss --block-loss weighted
           --block-positions 0.25 --train-dtype auto --max-tokens 2048)
data=$work/bin
case $model in kd-*) data=$work/kd ;; esac
case $model in
    ar | kd-ar) what=("${ours[@]}" --arch transformer --criterion label_smoothed_cross_entropy "${smooth[@]}" --train-dtype auto) ;;
    cmlm) what=("${ours[@]}" --arch cmlm_iwslt_de_en --criterion nar_loss "${smooth[@]}") ;;
    stock) # our user-dir only lets its checkpoints load under PyTorch 2.6 and later
        what=(--user-dir "$root/nar_plugins" --task translation_lev --arch cmlm_transformer --noise random_mask
              --criterion nat_loss --fixed-validation-seed 7 "${smooth[@]}") ;;
    kd-nat) what=("${ours[@]}" --arch nat --positional-attention --mask-diagonal "${taught[@]}" "${smooth[@]}") ;;
    kd-glat) what=("${ours[@]}" --arch nat --source-copy uniform --glancing "0.5:0.3@$updates" "${taught[@]}" "${smooth[@]}") ;;
    kd-ctc) what=("${ours[@]}" --arch nat --ctc --upsample 2 --glancing "0.5:0.3@$updates" "${taught[@]}") ;;
    kd-cmlm) what=("${ours[@]}" --arch cmlm "${taught[@]}" "${smooth[@]}") ;;
    kd-frozen) what=("${ours[@]}" "${blockwise[@]}" --freeze-base --finetune-from-model "$teacher") ;;
    kd-block)
        [ -e "$heads" ] || fail "kd-block needs $heads: train kd-frozen first"
        what=("${ours[@]}" "${blockwise[@]}" "${smooth[@]}" --finetune-from-model "$heads") ;;
    *) fail "no model '$model': $models" ;;
esac
"$bin/fairseq-train" "$data" --max-tokens 4096 "${what[@]}" "${sizes[@]}" "${recipe[@]}" "${rate[@]}" "${saving[@]}" \
    $device "${@:4}"
