#!/usr/bin/env bash
# SQuAD question generation, sentence to question, tokenised and lower-cased: bash examples/squad_qg/data.sh OUT [FOLDER]
# Writes {train,valid,test}.{sentence,question} into OUT and compares their SHA256 sums; ANY_TEXT=1 takes another text.
#
# The text is that of Du et al. 2017 (github.com/xinyadu/nqg, CC BY-SA 4.0), of which only their test and dev parts are used:
# their test part and the first 6,500 lines of dev are the training set, the last 2,000 lines of dev the test set, the 2,000
# before them the validation set; the 70 lines between belong to none, so that no sentence is in two sets. Without FOLDER the
# four files are downloaded, 5.7 MB. FOLDER (or RAW=FOLDER, SQUAD_QG=FOLDER) holds either these four, {src,tgt}-{test,dev}.txt,
# or the result, {train,valid,test}.{sentence,question}; plain, .gz or .xz.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
out=${1:?data.sh needs a folder to write into}
folder=${2:-${RAW:-${SQUAD_QG:-}}}
url=${SQUAD_QG_URL:-https://raw.githubusercontent.com/xinyadu/nqg/7f8bb00af7881bb8d8eaedc61e38e4114ff43ac6/data/processed}
raw=$(cat <<'LIST'
11877 5714e36b9f3ef884f4e109e876f4e507d61f58a1241b4fb0403866dfdeef315d src-test.txt
11877 e75710df557c2432925c8f2ca17e9b490235ce3c647c857fceaea6c401203a76 tgt-test.txt
10570 - src-dev.txt
10570 - tgt-dev.txt
LIST
)  # dev's sums are those of the result
list=$(cat <<'LIST'
18377 2813ac288e6ee255a563c9b06c63bee3356bfde63d1aaf54e7d12fc0b7bea52d train.sentence
18377 0fd87f521c75c3933ec12e75d5953f6b098785fece4f4c3ab8ef9e01a203fe62 train.question
2000 7963fce88e5d7f67102ce64b4fecb35ed720e0f4d8efdbb16e732158e1919b71 valid.sentence
2000 662df901349a311477c7193dad20a1a9ea0f3bb953fc0ea912f0275ed9ff2f12 valid.question
2000 e58baf03afcda4526feba9f074adae63c734ad951daa7a5de09c230f2348a5de test.sentence
2000 ca68997306320c3f1e714aae1df4448a463bd724a2935f8b85c180a69231b12e test.question
LIST
)

if [ -z "$folder" ]; then
    folder=$out/download
    fetch_list "$url" "" "$folder" "$raw"
fi
if find_text "$folder" src-test.txt src-dev.txt tgt-test.txt tgt-dev.txt > /dev/null; then
    collect "$folder" "$out/nqg" "$raw"
    mkdir -p "$out/cut"
    for side in sentence question; do
        case $side in sentence) name=src ;; question) name=tgt ;; esac
        for part in test dev; do sed 's/ $//' "$out/nqg/$name-$part.txt" > "$out/cut/$name-$part"; done  # src's lines end in a blank
        { cat "$out/cut/$name-test"; sed -n '1,6500p' "$out/cut/$name-dev"; } > "$out/cut/train.$side"
        sed -n '6571,8570p' "$out/cut/$name-dev" > "$out/cut/valid.$side"
        sed -n '8571,10570p' "$out/cut/$name-dev" > "$out/cut/test.$side"
    done
    folder=$out/cut
fi
collect "$folder" "$out" "$list"
rm -rf "$out/cut" "$out/nqg"
for split in train valid test; do parallel "$out/$split.sentence" "$out/$split.question"; done
