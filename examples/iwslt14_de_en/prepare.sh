#!/usr/bin/env bash
# IWSLT14 German-English, binarised: bash examples/iwslt14_de_en/prepare.sh [FOLDER] [WORK] [--dry-run]
# The text of fairseq's recipe, from the archive that it takes (19 MB): lower-cased; every 23rd pair validates; the test set is
# dev2010, TEDX dev2012, tst2010, tst2011 and tst2012. FOLDER (or RAW=FOLDER) holds {train,valid,test}.{de,en}, plain, .gz or
# .xz, with their case, or the archive de-en.tgz. More variables: ../recipe.sh.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe iwslt14_de_en de en bpe "${2:-}"
folder=${1:-${RAW:-}}
if prepared; then exit 0; fi
parts=$work/parts

tagged() {  # the archive's training text, cleaned, with every 23rd pair taken out of it
    local side
    for side in "$source" "$target"; do
        if stale "$parts/tags.$side" "$archive"; then extract "$archive" "de-en/train.tags.de-en.$side" "$parts/tags.$side"; fi
        filter "$parts/all.$side" "$parts/tags.$side" sed -E '/<(url|talkid|keywords)>/d; s/<\/?(title|description)>//g'
        filter_in_parts "$parts/tok.$side" "$parts/all.$side" "$bin/python" "$root/scripts/text.py" tokenise --language "$side"
    done
    clean_pairs "$parts/tok" 175 1.5 "$parts/all" "$parts/clean"
    for side in "$source" "$target"; do
        filter "$work/train.$side" "$parts/clean.$side" awk 'NR % 23'
        filter "$work/valid.$side" "$parts/clean.$side" awk 'NR % 23 == 0'
    done
}

segments() {  # the archive's test sets, one after the other
    local side name sets=()
    for side in "$source" "$target"; do
        sets=()
        for name in TED.dev2010 TEDX.dev2012 TED.tst2010 TED.tst2011 TED.tst2012; do
            extract "$archive" "de-en/IWSLT14.$name.de-en.$side.xml" "$parts/$name.$side.xml"
            filter "$parts/$name.$side" "$parts/$name.$side.xml" sed -nE "s/’/'/g; s/^ *<seg id=\"[0-9]+\"> *(.*[^ ]) *<\/seg>.*/\1/p"
            sets+=("$parts/$name.$side")
        done
        join "$work/test.$side" "${sets[@]}"
        if [ -z "$dry${ANY_TEXT:-}" ]; then check "$work/test.$side" 6750 - "" "$archive's test sets"; fi
    done
}

if [ -n "$mini" ]; then
    mini_text
elif has_split "$folder" train; then
    collect_split "$folder" train -
    collect_split "$folder" valid -
    collect_split "$folder" test 6750
else
    archive "$folder" https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz -
    if [ -z "$dry" ]; then mkdir -p "$parts"; fi
    if stale "$work/test.$target" "$archive"; then
        tagged
        segments
    fi
fi
prepare_pieces 10000 - - --lower
