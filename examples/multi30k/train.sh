#!/usr/bin/env bash
# Train on Multi30k: bash examples/multi30k/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run], MODEL one of
#   ar       fairseq's transformer, the teacher
#   cmlm     Mask-Predict, in the form of its release
#   dag      a directed acyclic graph of four vertices a source token, with glancing; it starts from ar's weights
#   stock    fairseq's own cmlm_transformer under its own task, to compare with
# and, on the data of distill.sh,
#   kd-ar    fairseq's transformer
#   kd-nat   NAT with fertilities, positional attention and diagonal mask
#   kd-glat  vanilla NAT (source stretched to a predicted length) with glancing
#   kd-ctc   the same with latent alignments, on a canvas of twice the source
#   kd-dag   the same with three vertices a token
#   kd-cmlm  Mask-Predict, in fairseq's form
#   kd-frozen  the frozen teacher with 8 sequential proposal heads; only the heads are trained, the greedy output is the teacher's
#   kd-block   kd-frozen, fine-tuned as a whole
#   kd-nat-ft  kd-nat, fine-tuned by the teacher (Gu et al. 2018, section 4)
#   kd-ctc-pruned  kd-ctc with half of its weights (nar-prune), fine-tuned
#   kd-ctc-small   kd-ctc without its middle layers, fine-tuned
#   kd-ar-12-1, kd-bang-ar, kd-bang  as in the other recipes, with the settings of kd-ar; kd-bang continues kd-bang-ar
# All have the same sizes. The other kd-* models start from the teacher's weights. A second run continues where the first one
# stopped. FLAGs are passed to fairseq-train and override those here.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe multi30k en de spm "${3:-}"
teacher=$work/ar/checkpoint_last.pt
sized 128 512 4 3
small_adam=(--optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 --dropout 0.1)
# Small batches, and a high learning rate that falls to zero: greedy search of ar is 3 BLEU better than with twice the tokens
# in an update and half of the rate
case $model in
    stock | cmlm)  plan 3000 4096 1e-3 400 "${small_adam[@]}" ;;
    ar | kd-ar*)   plan 3200 2048 2e-3 linear "${small_adam[@]}" --dropout 0.2 ;;
    dag)           plan 4000 1024 2e-3 linear "${small_adam[@]}" ;;
    kd-dag)        plan 3000 1024 2e-3 linear "${small_adam[@]}" ;;
    kd-frozen)     plan 1200 2048 1e-3 linear "${small_adam[@]}" ;;
    kd-block)      plan 3600 2048 1e-3 linear "${small_adam[@]}" ;;
    kd-nat-ft)     plan 400 1600 2e-5 - "${small_adam[@]}" --finetune-weight 0.25 ;;
    kd-ctc-*)      plan 800 2048 1e-3 linear "${small_adam[@]}" ;;
    kd-cmlm)       plan 6000 2048 2e-3 linear "${small_adam[@]}" --dropout 0.2 ;;  # half of the tokens are predicted in an update
    *)             plan 2400 2048 2e-3 linear "${small_adam[@]}" ;;
esac
# kd-ctc and kd-cmlm are validated by BLEU, for the curve. The mean of the five best, which stay, is no better than the last
# checkpoint: the rate falls to zero
saved=(--save-interval 3 --no-epoch-checkpoints)
case $model in kd-ctc | kd-cmlm) standard_saving 10 ;; esac
taught=(--criterion nar_loss --init-encoder-from "$teacher" --init-decoder-from "$teacher")
blockwise=(--arch blockwise --block-size 8 --block-head sequential --criterion blockwise_loss --block-loss weighted
           --block-positions 0.25)
# Huang et al. 2022 (DA-Transformer) with half of their vertices, and on distilled data, which has fewer alternatives, with three
# a token: a CPU feels each; glancing falls for two thirds of the updates, as theirs
vertices=4
if [ "$model" = kd-dag ]; then vertices=3; fi
graph=(--upsample "$vertices" --source-copy uniform --glancing "0.5:0.1@$((updates * 2 / 3 + 1))")
heads=$work/kd-frozen/checkpoint_last.pt
parent=$work/kd-ctc/checkpoint_last.pt
rank=64 layers=0,2
if [ -n "$mini" ]; then rank=8 layers=0; fi
prune() {  # FLAG ...: $what, which starts from kd-ctc without what the FLAGs remove
    need "$parent" "$model is made of it: train kd-ctc first"
    local pruned=$work/$model/pruned.pt
    if stale "$pruned" "$parent"; then run "$bin/nar-prune" "$parent" --data "$work/kd" "$@" --out "$pruned" $device; fi
    what=(--arch nat --ctc --upsample 2 --glancing 0.3 --criterion nar_loss --finetune-from-model "$pruned")
}
case $model in
    cmlm) # float32, as stock has
        task=(--task nar_translation) what=(--arch cmlm_iwslt_de_en --criterion nar_loss "${smooth[@]}") ;;
    stock) # our user-dir only lets its checkpoints load under PyTorch 2.6 and later
        task=(--task translation_lev)
        what=(--arch cmlm_transformer --noise random_mask --criterion nat_loss --fixed-validation-seed 7 "${smooth[@]}") ;;
    kd-nat) what=(--arch nat --positional-attention --mask-diagonal "${taught[@]}" "${smooth[@]}") ;;
    kd-nat-ft) what=(--arch nat --positional-attention --mask-diagonal --criterion nar_loss --teacher "$teacher"
                     --finetune-from-model "$work/kd-nat/checkpoint_best.pt") ;;
    kd-glat) what=(--arch nat --source-copy uniform --glancing "0.5:0.3@$updates" "${taught[@]}" "${smooth[@]}") ;;
    kd-ctc) what=(--arch nat --ctc --upsample 2 --glancing "0.5:0.3@$updates" "${taught[@]}") ;;
    kd-ctc-pruned) prune --prune-heads 0.25 --prune-ffn 0.75 --embedding-rank "$rank" ;;
    kd-ctc-small) prune --encoder-layers-to-keep "$layers" --decoder-layers-to-keep "$layers" ;;
    dag | kd-dag) what=(--arch dag "${graph[@]}" "${taught[@]}") ;;
    kd-cmlm) what=(--arch cmlm "${taught[@]}" "${smooth[@]}") ;;
    kd-frozen) what=("${blockwise[@]}" --freeze-base --finetune-from-model "$teacher") ;;
    kd-block)
        need "$heads" "kd-block starts from it: train kd-frozen first"
        what=("${blockwise[@]}" "${smooth[@]}" --finetune-from-model "$heads") ;;
    ar | kd-ar | kd-ar-12-1 | kd-bang-ar | kd-bang) system ;;
    *) fail "no model '$model': ar, cmlm, stock, dag, kd-ar, kd-nat, kd-glat, kd-ctc, kd-dag, kd-cmlm, kd-frozen, kd-block, kd-nat-ft," \
        "kd-ctc-pruned, kd-ctc-small, kd-ar-12-1, kd-bang-ar or kd-bang" ;;
esac
train
