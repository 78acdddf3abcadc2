# What the recipes share: where things are, how data comes, how sub-words and binarised pairs are made. To be sourced:
#
#     . "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
#
#   root     the repository
#   bin      the commands of the environment (VENV; default .venv in the repository)
#   device   --cpu, or what DEVICE says; an empty DEVICE is the GPU
#
# The functions below read and write the recipe's folder, $work. Checksums are SHA256 sums of the text, unpacked, so that
# the same text passes whether it comes plain, as .gz or as .xz.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${VENV:-$root/.venv}/bin
device=${DEVICE---cpu}
script=$(basename "$(dirname "$0")")/$(basename "$0")

fail() {  # MESSAGE: one line, then the end
    echo "$script: $*" >&2
    exit 2
}

# -- texts and their checksums ------------------------------------------------------------------------------------------

sha256() {  # the sum of the standard input
    if command -v sha256sum > /dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-64
}

lines() {  # FILE: its number of lines
    wc -l < "$1" | tr -d ' '
}

text() {  # FILE: its text, unpacked
    case $1 in *.gz) gzip -dc "$1" ;; *.xz) xz -dc "$1" ;; *) cat "$1" ;; esac
}

find_text() {  # FOLDER NAME ...: the path of the first NAME that FOLDER has, plain, .gz or .xz; 1 where it has none
    local name end
    for name in "${@:2}"; do for end in "" .gz .xz; do
        if [ -e "$1/$name$end" ]; then echo "$1/$name$end"; return; fi
    done; done
    return 1
}

unpack() {  # FILE OUT
    text "$1" > "$2.part" 2> /dev/null || fail "$1 is truncated or damaged: it cannot be unpacked"
    mv "$2.part" "$2"
}

# A list names texts, one a line: LINES SHA256 NAME [OTHER NAME ...]. "-" for SHA256: not known.

check() {  # FILE LINES SHA256 LIST [ORIGIN]: is this the text? LIST tells which other text it is; ORIGIN is where it is from
    local file=$1 wanted=$2 sum=$3 list=$4 origin=${5:-$1} has other
    has=$(lines "$file")
    if [ "$sum" != - ]; then sum=$(sha256 < "$file"); fi
    if [ "$sum" = "$3" ] && { [ "$sum" != - ] || [ "$has" = "$wanted" ]; }; then return; fi
    other=$(awk -v sum="$sum" '$2 == sum && sum != "-" { print $3; exit }' <<< "$list")
    if [ -n "$other" ]; then fail "$origin holds the text of $other: swapped or renamed"; fi
    if [ "$has" -lt "$wanted" ]; then fail "$origin has $has lines, not $wanted: truncated, or another text (ANY_TEXT=1 takes it)"; fi
    if [ "$has" -gt "$wanted" ]; then fail "$origin has $has lines, not $wanted: another text (ANY_TEXT=1 takes it)"; fi
    fail "$origin has $wanted lines, as it should, but another text, of SHA256 $sum, not $3 (ANY_TEXT=1 takes it)"
}

collect() {  # FOLDER OUT LIST: the texts of LIST, from FOLDER to OUT under their first name; ANY_TEXT=1 leaves out the sums
    local folder=$1 out=$2 list=$3 count sum names path missing=
    [ -d "$folder" ] || fail "no folder '$folder'"
    while read -r count sum names; do
        find_text "$folder" $names > /dev/null || missing="$missing ${names%% *}"
    done <<< "$list"
    [ -z "$missing" ] || fail "'$folder' lacks$missing (plain, .gz or .xz)"
    mkdir -p "$out"
    while read -r count sum names; do
        path=$(find_text "$folder" $names)
        unpack "$path" "$out/${names%% *}"
        if [ -z "${ANY_TEXT:-}" ]; then check "$out/${names%% *}" "$count" "$sum" "$list" "$path"; fi
    done <<< "$list"
}

parallel() {  # FILE FILE: sentences and their translations, line by line
    [ "$(lines "$1")" = "$(lines "$2")" ] || fail "$1 has $(lines "$1") lines and $2 has $(lines "$2"): they are not parallel"
}

# -- downloads ----------------------------------------------------------------------------------------------------------

fetch() {  # URL SHA256 FILE: download FILE, once; goes on where an interrupted download stopped. SHA256 of the text, or "-"
    local url=$1 sum=$2 file=$3 part resumed status got why
    local folder="name a folder that has ${file##*/} with RAW=FOLDER"
    if [ -e "$file" ]; then return; fi
    command -v curl > /dev/null || fail "no curl, which downloads $url: install it, or $folder"
    mkdir -p "$(dirname "$file")"
    part=$(dirname "$file")/part.$(basename "$file")
    while true; do
        resumed= status=0 got=-
        if [ -e "$part" ]; then resumed=yes; fi
        why=$(curl -fsSL --retry 2 --connect-timeout 20 -C - -o "$part" "$url" 2>&1) || status=$?
        case $status in
            0)
                if [ "$sum" != - ]; then got=$(text "$part" 2> /dev/null | sha256) || got="none, for it is truncated"; fi
                if [ "$got" = "$sum" ]; then mv "$part" "$file"; return; fi ;;
            22 | 33 | 36) ;;  # no such file, or the server cannot go on in the middle
            *) break ;;  # the part stays, for the next try
        esac
        rm -f "$part"
        [ -n "$resumed" ] || break  # what an earlier try had left was at fault: once more, from the start
    done
    if [ "$status" = 0 ]; then
        fail "$url is not what it was: SHA256 of its text is $got, not $sum; it was not kept: try again, or $folder"
    fi
    fail "no download of $url (${why##*$'\n'}): try again, or $folder"
}

fetch_list() {  # URL END FOLDER LIST: every text of LIST from URL/NAME END, NAME being its last name
    local url=$1 end=$2 folder=$3 count sum names
    while read -r count sum names; do
        fetch "$url/${names##* }$end" "$sum" "$folder/${names%% *}$end"
    done <<< "$4"
}

# -- sub-words and binarised data -----------------------------------------------------------------------------------------

learn_pieces() {  # SIZE FILE ...: a SentencePiece model of SIZE pieces, $work/spm
    "$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size "$1" "${@:2}"
}

encode_pieces() {  # FILE ...: NAME.LANGUAGE in sub-words as NAME.sp.LANGUAGE
    local file
    for file; do "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm" < "$file" > "${file%.*}.sp.${file##*.}"; done
}

into() {  # FILE COMMAND ...: its output in FILE, its messages in FILE.err, of which the end is shown where it fails
    "${@:2}" > "$1" 2> "$1.err" || { tail -n 20 "$1.err" >&2; exit 1; }
}

binarise() {  # SOURCE TARGET [FLAG ...]: $work/{train,valid,test}.sp.* with one dictionary as $work/bin, whole or not at all
    rm -rf "$work/bin" "$work/bin.part"
    into "$work/preprocess.log" "$bin/fairseq-preprocess" --source-lang "$1" --target-lang "$2" --joined-dictionary \
        --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" --destdir "$work/bin.part" "${@:3}"
    mv "$work/bin.part" "$work/bin"
}

# -- models ---------------------------------------------------------------------------------------------------------------

# the width of the recipes' models, which train on a CPU
small=(--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
       --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4)
