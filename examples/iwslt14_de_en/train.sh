#!/usr/bin/env bash
# Train on IWSLT14 German-English: bash examples/iwslt14_de_en/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run]
# MODEL is a system of the table below, or kd-SYSTEM: trained on the translations that distill.sh makes with ar. FLAGs are
# fairseq-train's and override those of the table. DEVICE="" trains on the GPU.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe iwslt14_de_en de en bpe "${3:-}"
sized 512 1024 4 6  # fairseq's transformer_iwslt_de_en, which CMLMC's script has too
#         updates tokens  rate   warm-up
case $kind in
    ar | ar-12-1 | bang-ar)  # fairseq's recipe for IWSLT14 (examples/translation/README.md), which gives no number of updates
        plan 50000  4096  5e-4   4000   --dropout 0.3 "${adam[@]}" --weight-decay 1e-4 ;;
    nat)     # no script of Gu et al. 2018 has these sizes: rate and warm-up of ar
        plan 100000 8192  5e-4   4000   --dropout 0.3 "${adam[@]}" ;;
    nat-ft)  # Gu et al. 2018, section 4 and released scripts: lambda 0.25, constant rate. They do not give the updates
        plan 5000   1600  2e-5   -      --dropout 0.3 "${adam[@]}" --finetune-weight 0.25 ;;
    glat | ctc | cmlm)  # Huang et al. 2022 (CMLMC), the IWSLT14 script: 300 epochs, about 150,000 updates
        plan 150000 8192  5e-4   10000  --dropout 0.3 "${bert_adam[@]}" ;;
    dag)     # Huang et al. 2022 (DA-Transformer) has no such script: updates, tokens and rate of ctc, their clipping
        plan 150000 8192  5e-4   10000  --dropout 0.3 "${bert_adam[@]}" --clip-norm 0.1 ;;
    frozen | block)  # Stern et al. 2018, section 7.1, for WMT14; updates and tokens are ours
        plan 50000  8192  9.9e-4 8000   --dropout 0.1 --optimizer adam --adam-betas "(0.9, 0.997)" --adam-eps 1e-9 ;;
    bang)    # Qi et al. 2021, the release's fine-tuning; updates and tokens are ours
        plan 50000  8192  1e-4   1000   --dropout 0.1 --attention-dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
esac
standard_saving
system
train
