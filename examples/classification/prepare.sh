#!/usr/bin/env bash
# Labelled text as pairs text -> label, binarised: bash examples/classification/prepare.sh [FOLDER] [WORK]
# FOLDER holds train.tsv, valid.tsv and test.tsv, each line a label, a tab, a text; without it (or with ""), the kinds of
# SQuAD's questions, from ../shared/data/squad_qg. WORK (default: work/classification) receives everything.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-}
work=${2:-$root/work/classification}
bin=${VENV:-$root/.venv}/bin
if [ -e "$work/bin/test.text-label.label.idx" ]; then echo "classification: $work/bin is there"; exit 0; fi

mkdir -p "$work"
if [ -z "$folder" ]; then
    folder=$work/tsv
    "$bin/python" "$root/examples/classification/labelled.py" questions "${SQUAD_QG:-$root/../shared/data/squad_qg}" "$folder"
fi
for split in train valid test; do
    "$bin/python" "$root/examples/classification/labelled.py" split "$folder/$split.tsv" "$work/$split"
done
"$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size 4000 "$work/train.text" "$work/train.label"
for split in train valid test; do for side in text label; do
    "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm" < "$work/$split.$side" > "$work/$split.sp.$side"
done; done
rm -rf "$work/bin" "$work/bin.part"
"$bin/fairseq-preprocess" --source-lang text --target-lang label --joined-dictionary \
    --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" --destdir "$work/bin.part"
mv "$work/bin.part" "$work/bin"  # whole or not at all
