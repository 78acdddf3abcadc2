#!/usr/bin/env bash
# Train on Tatoeba English-German: bash examples/tatoeba_en_de/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run]
# MODEL is a system of the table below, or kd-SYSTEM: trained on the translations that distill.sh makes with ar. FLAGs are
# fairseq-train's and override those of the table. DEVICE="" trains on the GPU. No paper has this data set: the settings are
# ours, those of Multi30k with less dropout, since there is more text: small batches, and a high rate that falls to zero.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe tatoeba_en_de en de spm "${3:-}"
sized 128 512 4 3
small_adam=(--optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 --dropout 0.1)
#         updates tokens rate warm-up
case $kind in
    ar | ar-12-1 | bang-ar)
        plan 3200 2048 2e-3 linear "${small_adam[@]}" ;;
    nat | glat | ctc | dag | bang)
        plan 2400 2048 2e-3 linear "${small_adam[@]}" ;;
    cmlm)  # half of the tokens are predicted in an update
        plan 4000 2048 2e-3 linear "${small_adam[@]}" ;;
    nat-ft)  # Gu et al. 2018, section 4 and released scripts: lambda 0.25, constant rate
        plan 1000 1600 2e-5 - "${small_adam[@]}" --finetune-weight 0.25 ;;
    frozen | block)
        plan 2400 2048 1e-3 linear "${small_adam[@]}" ;;
esac
# Fewer checkpoints than the papers', as each is validated: the five best by BLEU are among ten
case $kind in
    ar | ar-12-1 | frozen | block) standard_saving 40 ;;
    *) standard_saving 10 ;;
esac
system
case $kind in
    cmlm) what=(--arch cmlm --criterion nar_loss "${smooth[@]}") ;;  # fairseq's form, which the teacher's weights fit
esac
case $kind in
    glat | ctc | cmlm)
        need_teacher
        what+=(--init-encoder-from "$teacher" --init-decoder-from "$teacher") ;;
esac
train
