#!/usr/bin/env bash
# SQuAD question generation, sentence to question, binarised: bash examples/squad_qg/prepare.sh [FOLDER] [WORK]
# The text is downloaded, or taken from FOLDER (RAW=FOLDER, SQUAD_QG=FOLDER), and checked: see data.sh.
# WORK (default: work/squad_qg) receives the text, the SentencePiece model, the pairs in WORK/bin and, for pre-training, the
# sentences as running text in WORK/raw; MORE_TEXT=FILE (or RAW=FILE) adds more of it, one sentence a line.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
more=${MORE_TEXT:-}
if [ -f "${RAW:-}" ]; then more=$RAW RAW=; fi
folder=${1:-${RAW:-${SQUAD_QG:-}}}
work=${2:-$root/work/squad_qg}
[ -z "$more" ] || [ -f "$more" ] || fail "no file '$more', which MORE_TEXT names"

if [ -e "$work/raw/valid.idx" ] && [ -e "$work/bin/test.sentence-question.question.idx" ]; then echo "squad_qg: $work is there"; exit 0; fi
mkdir -p "$work"
RAW='' bash "$root/examples/squad_qg/data.sh" "$work" "$folder"
for split in train valid; do awk '!seen[$0]++' "$work/$split.sentence" > "$work/$split.raw"; done  # a sentence has several questions
if [ -n "$more" ]; then text "$more" >> "$work/train.raw"; fi

learn_pieces 4000 "$work/train.raw" "$work/train.question"
encode_pieces "$work"/{train,valid,test}.{sentence,question} "$work"/{train,valid}.raw
binarise sentence question
rm -rf "$work/raw"
# the same dictionary, so that the pre-trained model fine-tunes
into "$work/raw.log" "$bin/fairseq-preprocess" --only-source --srcdict "$work/bin/dict.sentence.txt" \
    --trainpref "$work/train.sp.raw" --validpref "$work/valid.sp.raw" --destdir "$work/raw"
