#!/usr/bin/env bash
# Train on WMT16 English-Romanian: bash examples/wmt16_en_ro/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run]
# MODEL is a system of the table below, or kd-SYSTEM: trained on the translations that distill.sh makes with ar. FLAGs are
# fairseq-train's and override those of the table. DEVICE="" trains on the GPU.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe wmt16_en_ro en ro bpe "${3:-}"
sized 512 2048 8 6  # Transformer base, as all the papers below
#         updates tokens   rate   warm-up
case $kind in
    ar | ar-12-1 | bang-ar)  # Vaswani et al. 2017, section 5, for the smaller text with fewer updates and more dropout, which are ours
        plan 50000  25000  7e-4   4000   --dropout 0.3 "${adam[@]}" ;;
    nat)     # Gu et al. 2018, their released scripts, as for WMT14
        plan 1000000 3072  3.5e-4 16000  --dropout 0.1 "${adam[@]}" ;;
    nat-ft)  # Gu et al. 2018, their released scripts: for Romanian the usual loss keeps 0.9. They do not give the updates
        plan 5000   1600   2e-5   -      --dropout 0.1 "${adam[@]}" --finetune-weight 0.1 ;;
    glat | ctc)  # Xia et al. 2023 (SpecDec), the glancing drafter of their WMT16 script
        plan 50000  65536  1e-3   4000   --dropout 0.2 "${bert_adam[@]}" ;;
    dag)     # Huang et al. 2022 (DA-Transformer) has no such script: their WMT14 script's, for a sixth of the updates, which is ours
        plan 50000  65536  5e-4   10000  --dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
    cmlm)    # Ghazvininejad et al. 2019, the release's README: one command for all language pairs
        plan 300000 131072 5e-4   10000  --dropout 0.3 "${bert_adam[@]}" --clip-norm 25 ;;
    frozen | block)  # Stern et al. 2018, section 7.1, for WMT14; a tenth of the updates, which is ours
        plan 100000 32768  9.9e-4 8000   --dropout 0.1 --optimizer adam --adam-betas "(0.9, 0.997)" --adam-eps 1e-9 ;;
    bang)    # Qi et al. 2021, the release's fine-tuning: 3,072 tokens on each of 8 devices. The updates are ours
        plan 50000  24576  1e-4   1000   --dropout 0.1 --attention-dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
esac
standard_saving
system
train
