#!/usr/bin/env bash
# SQuAD question generation, sentence to question, binarised: bash examples/squad_qg/prepare.sh [FOLDER] [WORK]
# FOLDER holds {train,valid,test}.{sentence,question}, plain, .gz or .xz (tokenised, lower-cased: Du et al. 2017).
# WORK (default: work/squad_qg) receives the text, the SentencePiece model, the pairs in WORK/bin and, for pre-training, the
# sentences as running text in WORK/raw; RAW=FILE adds more of it, one sentence a line.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-${SQUAD_QG:-$root/../shared/data/squad_qg}}
work=${2:-$root/work/squad_qg}
bin=${VENV:-$root/.venv}/bin

[ -d "$folder" ] || { echo "squad_qg: no folder '$folder': give the one that holds train.sentence, train.question, ..." >&2; exit 2; }
if [ -e "$work/raw/valid.idx" ] && [ -e "$work/bin/test.sentence-question.question.idx" ]; then echo "squad_qg: $work is there"; exit 0; fi
mkdir -p "$work"
for split in train valid test; do for side in sentence question; do
    path=
    for ext in "" .gz .xz; do if [ -e "$folder/$split.$side$ext" ]; then path=$folder/$split.$side$ext; break; fi; done
    [ -n "$path" ] || { echo "squad_qg: '$folder' has no $split.$side (plain, .gz or .xz)" >&2; exit 2; }
    case $path in *.gz) gzip -dc "$path" ;; *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac > "$work/$split.$side"
done; done
for split in train valid; do awk '!seen[$0]++' "$work/$split.sentence" > "$work/$split.raw"; done  # a sentence has several questions
if [ -n "${RAW:-}" ]; then cat "$RAW" >> "$work/train.raw"; fi

"$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size 4000 "$work/train.raw" "$work/train.question"
for file in {train,valid,test}.{sentence,question} {train,valid}.raw; do
    "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm" < "$work/$file" > "$work/${file%.*}.sp.${file##*.}"
done
rm -rf "$work/bin" "$work/raw"
"$bin/fairseq-preprocess" --source-lang sentence --target-lang question --joined-dictionary \
    --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" --destdir "$work/bin"
# the same dictionary, so that the pre-trained model fine-tunes
"$bin/fairseq-preprocess" --only-source --srcdict "$work/bin/dict.sentence.txt" \
    --trainpref "$work/train.sp.raw" --validpref "$work/valid.sp.raw" --destdir "$work/raw"
