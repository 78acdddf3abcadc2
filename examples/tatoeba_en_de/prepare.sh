#!/usr/bin/env bash
# Tatoeba English-German, everyday sentences, binarised: bash examples/tatoeba_en_de/prepare.sh [FOLDER] [WORK] [--dry-run]
# FOLDER (or RAW=FOLDER) holds {train,valid,test}.{en,de}, plain, .gz or .xz: the split that EXPECTED.md measures, from the pairs
# of manythings.org/anki of May 2018, is checked; ANY_TEXT=1 takes another. Without FOLDER today's pairs are downloaded
# (deu-eng.zip) and split by split.py, so that no sentence of either language is in two parts: another split.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe tatoeba_en_de en de spm "${2:-}"
folder=${1:-${RAW:-}}
if prepared; then exit 0; fi
list=$(cat <<'LIST'
@SUMS@
LIST
)
if [ -n "$mini" ]; then
    mini_text
elif [ -n "$folder" ]; then
    collect "$folder" "$work" "$list"
else
    archive "" https://www.manythings.org/anki/deu-eng.zip -
    if stale "$work/pairs.tsv" "$archive"; then extract "$archive" deu.txt "$work/pairs.tsv"; fi
    if stale "$work/test.de" "$work/pairs.tsv"; then run "$bin/python" "$root/examples/tatoeba_en_de/split.py" "$work/pairs.tsv" "$work"; fi
fi
prepare_pieces 8000 - - --normalise
