#!/usr/bin/env bash
# Labelled text as pairs text -> label, binarised: bash examples/classification/prepare.sh [FOLDER] [WORK]
# FOLDER holds train.tsv, valid.tsv and test.tsv, each line a label, a tab, a text. Without it (or with ""), the kinds of
# SQuAD's questions: downloaded, or from RAW=FOLDER or SQUAD_QG=FOLDER (examples/squad_qg/data.sh).
# WORK (default: work/classification) receives everything.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
folder=${1:-}
work=${2:-$root/work/classification}
if [ -e "$work/bin/test.text-label.label.idx" ]; then echo "classification: $work/bin is there"; exit 0; fi

mkdir -p "$work"
if [ -z "$folder" ]; then
    folder=$work/tsv
    bash "$root/examples/squad_qg/data.sh" "$work/squad_qg"
    "$bin/python" "$root/examples/classification/labelled.py" questions "$work/squad_qg" "$folder"
fi
for split in train valid test; do
    "$bin/python" "$root/examples/classification/labelled.py" split "$folder/$split.tsv" "$work/$split"
done
learn_pieces 4000 "$work"/train.{text,label}
encode_pieces "$work"/{train,valid,test}.{text,label}
binarise text label
