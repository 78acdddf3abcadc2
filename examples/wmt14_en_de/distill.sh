#!/usr/bin/env bash
# WMT14 with the translations of the model ar as targets, in WORK/kd: bash examples/wmt14_en_de/distill.sh [WORK] [--dry-run]
# Beam and length penalty of Vaswani et al. 2017 (section 6.1), with which Stern et al. 2018 distilled. Mask-Predict and CMLMC
# distilled with a Transformer-big: TEACHER=CHECKPOINT of the same dictionary takes another teacher.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt14_en_de en de bpe "${1:-}"
distil --beam 4 --lenpen 0.6
