#!/usr/bin/env bash
# Multi30k English-German, binarised: bash examples/multi30k/prepare.sh [FOLDER] [WORK]
# FOLDER holds {train,valid,test}.{en,de}, plain, .gz or .xz (also found: val.*, test_2016_flickr.*).
# WORK (default: work/multi30k) receives the text, the SentencePiece model and the binarised data in WORK/bin.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-${MULTI30K:-$root/../shared/data/multi30k}}
work=${2:-$root/work/multi30k}
bin=${VENV:-$root/.venv}/bin

[ -d "$folder" ] || { echo "multi30k: no folder '$folder': give the one that holds train.en, train.de, ... as first argument" >&2; exit 2; }
if [ -e "$work/bin/dict.de.txt" ] && [ -e "$work/bin/test.en-de.de.idx" ]; then echo "multi30k: $work/bin is there already"; exit 0; fi
mkdir -p "$work"

find_text() {  # split language -> path
    local split=$1 lang=$2 name ext
    case $split in valid) set -- valid val ;; test) set -- test test_2016_flickr test2016 ;; *) set -- train ;; esac
    for name in "$@"; do for ext in "" .gz .xz; do
        [ -e "$folder/$name.$lang$ext" ] && { echo "$folder/$name.$lang$ext"; return; }
    done; done
    echo "multi30k: '$folder' has no $split.$lang (plain, .gz or .xz)" >&2
    return 1
}
for split in train valid test; do for lang in en de; do
    path=$(find_text $split $lang)
    case $path in *.gz) gzip -dc "$path" ;; *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac > "$work/$split.$lang"
done; done

"$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size 6000 "$work/train.en" "$work/train.de"
for split in train valid test; do for lang in en de; do
    "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm" < "$work/$split.$lang" > "$work/$split.sp.$lang"
done; done
rm -rf "$work/bin"
"$bin/fairseq-preprocess" --source-lang en --target-lang de --joined-dictionary --workers 2 \
    --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" --destdir "$work/bin"
