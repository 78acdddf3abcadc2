#!/usr/bin/env bash
# Train on WMT14 English-German: bash examples/wmt14_en_de/train.sh MODEL [UPDATES] [WORK] [FLAG ...] [--dry-run]
# MODEL is a system of the table below, or kd-SYSTEM: trained on the translations that distill.sh makes with ar. FLAGs are
# fairseq-train's and override those of the table. Without DEVICE="" it trains on the CPU, which takes months.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
choose "$@"
recipe wmt14_en_de en de bpe "${3:-}"
sized 512 2048 8 6  # Transformer base (Vaswani et al. 2017, table 3), which all papers below take
#         updates tokens   rate   warm-up
case $kind in
    ar | ar-12-1)  # Vaswani et al. 2017, sections 5.1 to 5.4. 7e-4 is 512^-0.5 * 4000^-0.5
        plan 100000 25000  7e-4   4000   --dropout 0.1 "${adam[@]}" ;;
    nat)     # Gu et al. 2018, their released scripts: 16,000 warm-up updates, rate 512^-0.5 * 16000^-0.5, at most 3,072 tokens
        plan 1000000 3072  3.5e-4 16000  --dropout 0.1 "${adam[@]}" ;;
    nat-ft)  # Gu et al. 2018, section 4 and released scripts: lambda 0.25, constant rate. They do not give the updates
        plan 5000   1600   2e-5   -      --dropout 0.1 "${adam[@]}" --finetune-weight 0.25 ;;
    glat | ctc)  # Huang et al. 2022 (DA-Transformer), the script in whose setting they compare GLAT and CTC + GLAT
        plan 300000 65536  5e-4   10000  --dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
    dag)     # Huang et al. 2022 (DA-Transformer), wmt14_ende.sh: 4,096 tokens on each of 8 devices, twice; on raw data
        plan 300000 65536  5e-4   10000  --dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
    cmlm)    # Ghazvininejad et al. 2019, the release's README: 8,192 tokens on each of 16 devices; clip 25 was fairseq's default
        plan 300000 131072 5e-4   10000  --dropout 0.3 "${bert_adam[@]}" --clip-norm 25 ;;
    frozen | block)  # Stern et al. 2018, section 7.1, as tensor2tensor's transformer_base: 4,096 tokens on each of 8 devices
        plan 1000000 32768 9.9e-4 8000   --dropout 0.1 --optimizer adam --adam-betas "(0.9, 0.997)" --adam-eps 1e-9 ;;
    bang-ar) # as ar: the paper has pre-training in its place and no translation
        plan 100000 25000  7e-4   4000   --dropout 0.1 "${adam[@]}" ;;
    bang)    # Qi et al. 2021, the release's fine-tuning: 3,072 tokens on each of 8 devices. The updates are ours
        plan 100000 24576  1e-4   1000   --dropout 0.1 --attention-dropout 0.1 "${bert_adam[@]}" --clip-norm 0.1 ;;
esac
standard_saving
system
train
