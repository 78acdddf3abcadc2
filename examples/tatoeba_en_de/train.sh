#!/usr/bin/env bash
# Train on Tatoeba English-German: bash examples/tatoeba_en_de/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run]
# MODEL is a system of the table below, or kd-SYSTEM: trained on the translations that distill.sh makes with ar. FLAGs are
# fairseq-train's and override those of the table. DEVICE="" trains on the GPU. No paper has this data set: the settings are
# ours, of the size of Multi30k's, and the learning rate falls to zero.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe tatoeba_en_de en de spm "${3:-}"
sized 256 1024 4 3
#         updates tokens rate warm-up
case $kind in
    ar | ar-12-1 | bang-ar)
        plan 10000 4096 1e-3 linear --dropout 0.1 "${adam[@]}" --clip-norm 5 ;;
    nat | glat | ctc | dag | cmlm)
        plan 20000 8192 1e-3 linear --dropout 0.1 "${bert_adam[@]}" --clip-norm 5 ;;
    nat-ft)  # Gu et al. 2018, section 4 and released scripts: lambda 0.25, constant rate
        plan 2000 1600 2e-5 - --dropout 0.1 "${adam[@]}" --finetune-weight 0.25 ;;
    frozen | block)
        plan 5000 4096 1e-3 linear --dropout 0.1 "${adam[@]}" --clip-norm 5 ;;
    bang)
        plan 10000 4096 5e-4 linear --dropout 0.1 "${bert_adam[@]}" --clip-norm 5 ;;
esac
standard_saving
system
train
