#!/usr/bin/env bash
# WMT16 English-Romanian, binarised: bash examples/wmt16_en_ro/prepare.sh [FOLDER] [WORK] [--dry-run]
# Training text: Europarl v8 and SETIMES. Validation: newsdev2016. Test: newstest2016. FOLDER (or RAW=FOLDER) holds
# {train,valid,test}.{en,ro}, plain, .gz or .xz, or the two archives of the training text. Romanian's s and t with a cedilla
# become those with a comma; DIACRITICS=strip removes all its diacritics, also in the reference, as Sennrich et al. 2016 did
# for their source side. More variables: ../recipe.sh. MINI=1 takes German for Romanian.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt16_en_ro en ro bpe "${2:-}"
folder=${1:-${RAW:-}}
diacritics=${DIACRITICS:-keep}
if prepared "diacritics=$diacritics"; then exit 0; fi
texts=$work/raw
corpora=$(cat <<'LIST'
- - https://data.statmt.org/wmt16/translation-task/training-parallel-ep-v8.tgz training-parallel-ep-v8/europarl-v8.ro-en
- - https://object.pouta.csc.fi/OPUS-SETIMES/v2/moses/en-ro.txt.zip SETIMES.en-ro
LIST
)
if [ -n "$mini" ]; then
    mini_text
else
    training_text "$folder" "$corpora"
    evaluation_text "$folder" valid wmt16/dev 1999
    evaluation_text "$folder" test wmt16 1999
fi
case $diacritics in
    keep) romanian=(romanian) ;;
    strip) romanian=(romanian --strip) ;;
    *) fail "DIACRITICS=$diacritics is neither keep nor strip" ;;
esac
for split in train valid test; do
    join "$work/$split.en" "$texts/$split.en"
    if stale "$work/$split.ro" "$texts/$split.ro"; then
        filter "$work/$split.ro" "$texts/$split.ro" "$bin/python" "$root/scripts/text.py" "${romanian[@]}"
    fi
done
# 40,000 merges, as Mask-Predict's data (Lee et al. 2018)
prepare_pieces 40000 250 1.5 --normalise
