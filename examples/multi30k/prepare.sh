#!/usr/bin/env bash
# Multi30k English-German (Elliott et al. 2016; task 1, test 2016), binarised: bash examples/multi30k/prepare.sh [FOLDER] [WORK] [--dry-run]
# Without FOLDER the text is downloaded, 1.3 MB. FOLDER (or RAW=FOLDER, MULTI30K=FOLDER) holds {train,valid,test}.{en,de},
# plain, .gz or .xz (also found: val.*, test_2016_flickr.*, test2016.*). Either way its SHA256 sums are compared; ANY_TEXT=1
# takes another text of these names.
# WORK (default: work/multi30k) receives the text, the SentencePiece model and the binarised data in WORK/bin. More variables:
# ../recipe.sh.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe multi30k en de spm "${2:-}"
folder=${1:-${RAW:-${MULTI30K:-}}}
if prepared; then exit 0; fi
url=${MULTI30K_URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}
list=$(cat <<'LIST'
29000 460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6 train.en
29000 2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72 train.de
1014 1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227 valid.en val.en
1014 660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660 valid.de val.de
1000 399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182 test.en test2016.en test_2016_flickr.en
1000 4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16 test.de test2016.de test_2016_flickr.de
LIST
)

if [ -n "$mini" ]; then
    mini_text
else
    if [ -z "$folder" ]; then
        folder=$work/download
        fetch_list "$url" .gz "$folder" "$list"
    fi
    collect "$folder" "$work" "$list"
fi
prepare_pieces 6000 - -
