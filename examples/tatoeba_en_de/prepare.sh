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
162875 cb7b89409a9013d99402722bbc8f574f8ab7bfbca8bbec43b9c5eee6c264cb18 train.en
162875 1978bbe49ffa6ed123b33d541767b579bad21ff3e096b84656795b6e05f2fec5 train.de
3590 f5327090f8d4e1e5879a800405ada305ed7a4a81a662df1e5b3d493e3fbcb487 valid.en
3590 a2a987ef3f4ae85a3087ff7b3f3e8b302deac462abb7ea3f52a98d88a26c082b valid.de
3348 f0f113f6fabd4ff4322edba8443ace8da441c19c749ae09ec748b870d3d0aec9 test.en
3348 cc2fb97c00c40333809e00a03d32796436ebf941dc0dbeaa3b2603e1f9bc42db test.de
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
