#!/usr/bin/env bash
# Raw text in BERT's word pieces, binarised for pre-training: bash examples/bang_pretraining/prepare.sh TRAIN VALID [WORK]
# TRAIN and VALID are files, plain, .gz or .xz: one sentence or paragraph a line, an empty line between documents.
# BERT's uncased vocabulary (30,522 symbols) is downloaded, or taken from RAW=FOLDER, which has vocab.txt; ANY_TEXT=1 takes
# another one. WORK (default: work/bang_pretraining) receives the dictionary, the pieces and the binarised data in WORK/raw.
# WORKERS processes work at once (default: one a core).
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
train=${1:-} valid=${2:-}
work=${3:-$root/work/bang_pretraining}
url=${BERT_URL:-https://huggingface.co/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594}
list="30522 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3 vocab.txt"
for file in "$train" "$valid"; do [ -f "$file" ] || fail "no text '$file': give a file to train on and a file to validate on"; done
if [ -e "$work/raw/valid.idx" ]; then echo "bang_pretraining: $work/raw is there"; exit 0; fi

folder=${RAW:-$work/download}
if [ -z "${RAW:-}" ]; then fetch_list "$url" "" "$folder" "$list"; fi
collect "$folder" "$work" "$list"
"$bin/nar-convert" bert-vocab "$work/vocab.txt" --out "$work/dict.bert.txt"

encode=("$bin/nar-wordpiece" encode --vocab "$work/vocab.txt")
filter_in_parts "$work/train.wp" "$train" "${encode[@]}"
filter_in_parts "$work/valid.wp" "$valid" "${encode[@]}"
rm -rf "$work/raw" "$work/raw.part"
into "$work/preprocess.log" "$bin/fairseq-preprocess" --user-dir "$root/nar_plugins" --task bang_pretraining --only-source \
    --srcdict "$work/dict.bert.txt" --trainpref "$work/train.wp" --validpref "$work/valid.wp" --destdir "$work/raw.part" \
    --workers "$workers"
mv "$work/raw.part" "$work/raw"  # whole or not at all
