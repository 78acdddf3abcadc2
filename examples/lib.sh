# What the recipes share: where things are, how data comes, how sub-words and binarised pairs are made. To be sourced:
#
#     . "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
#
#   root     the repository
#   bin      the commands of the environment (VENV; default .venv in the repository)
#   device   --cpu, or what DEVICE says; an empty DEVICE is the GPU
#   workers  processes that work at once on a text (WORKERS; default: one a core)
#
# The functions below read and write the recipe's folder, $work. Checksums are SHA256 sums of the text, unpacked, so that
# the same text passes whether it comes plain, as .gz or as .xz.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${VENV:-$root/.venv}/bin
device=${DEVICE---cpu}
script=$(basename "$(dirname "$0")")/$(basename "$0")
workers=${WORKERS:-$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1)}
# glibc returns the memory of every large tensor at once, and the kernel clears the next one's pages anew: a fifth of
# a small model's training. Kept, pages are cleared once (docs/troubleshooting.md). Other systems' libraries ignore this.
if [ -n "$device" ]; then
    export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-100000000000}
fi
dry=  # not empty: commands are printed, not run (recipe.sh, --dry-run)

fail() {  # MESSAGE: one line, then the end
    echo "$script: $*" >&2
    exit 2
}

# -- commands -------------------------------------------------------------------------------------------------------------

show() {  # END WORD ...: print a command as a shell would read it, with END (redirections) after its words
    local word
    for word in "${@:2}"; do
        case $word in
            "" | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s' " "${word//\'/\'\\\'\'}" ;;
            *) printf '%s ' "$word" ;;
        esac
    done
    echo "$1"
}

run() {  # COMMAND ...
    if [ -n "$dry" ]; then show "" "$@"; else "$@"; fi
}

into() {  # FILE COMMAND ...: its output in FILE, its messages in FILE.err, of which the end is shown where it fails
    if [ -n "$dry" ]; then show "> $1" "${@:2}"; return; fi
    "${@:2}" > "$1" 2> "$1.err" || { tail -n 20 "$1.err" >&2; exit 1; }
}

holds() {  # CODE: does Python print True? A dry run says yes
    local said
    if [ -n "$dry" ]; then return 0; fi
    said=$("$bin/python" -c "$1") || fail "Python cannot say what runs here: see above"
    [ "$said" = True ]
}

int8_runs() {  # has this processor what int8 needs?
    holds 'import torch; from nar_plugins.modules.fast.forms import int8_lacks; print(int8_lacks(torch.device("cpu")) is None)'
}

onnx_int8_runs() {  # ONNX Runtime adds exactly with VNNI only
    holds 'from nar_plugins.modules.fast.int8 import adds_in_16_bits; print(not adds_in_16_bits())'
}

onnx_runs() {  # can models be exported and run here?
    [ -n "$dry" ] || "$bin/python" -c 'import onnx, onnxruntime, onnxscript' 2> /dev/null
}

stale() {  # FILE FROM ...: is FILE missing, or older than one of those that it is made from?
    local from
    if [ -n "$dry" ] || [ ! -e "$1" ]; then return 0; fi
    for from in "${@:2}"; do if [ "$from" -nt "$1" ]; then return 0; fi; done
    return 1
}

filter() {  # OUT IN COMMAND ...: OUT is what a command makes of IN, whole or not at all
    if [ -n "$dry" ]; then show "< $2 > $1" "${@:3}"; return; fi
    "${@:3}" < "$2" > "$1.part" || exit 1
    mv "$1.part" "$1"
}

filter_in_parts() {  # OUT IN COMMAND ...: the same in $workers processes, each for a part of the lines; IN may be packed
    if [ -n "$dry" ]; then filter "$@"; return; fi
    local parts=$1.parts
    rm -rf "$parts"
    mkdir -p "$parts"
    text "$2" > "$parts/text"
    split -n "l/$workers" "$parts/text" "$parts/part."
    printf '%s\0' "$parts"/part.* | xargs -0 -P "$workers" -I {} \
        sh -c 'part=$1; shift; "$@" < "$part" > "$part.out" 2> "$part.err"' sh {} "${@:3}" || {
        find "$parts" -name "*.err" -size +0 | sort | head -n 1 | xargs tail -n 20 >&2
        exit 1
    }
    cat "$parts"/part.*.out > "$1.part"
    mv "$1.part" "$1"
    rm -rf "$parts"
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

replace() {  # PART FILE: FILE becomes PART; one with the same text stays, and what was made from it is not stale
    if cmp -s "$1" "$2"; then rm "$1"; else mv "$1" "$2"; fi
}

unpack() {  # FILE OUT
    text "$1" > "$2.part" 2> /dev/null || fail "$1 is truncated or damaged: it cannot be unpacked"
    replace "$2.part" "$2"
}

# A list names texts, one a line: LINES SHA256 NAME [OTHER NAME ...]. "-" for LINES or SHA256: not known.

check() {  # FILE LINES SHA256 LIST [ORIGIN]: is this the text? LIST tells which other text it is; ORIGIN is where it is from
    local file=$1 wanted=$2 sum=$3 list=$4 origin=${5:-$1} has other
    has=$(lines "$file")
    if [ "$sum" != - ]; then sum=$(sha256 < "$file"); fi
    if [ "$wanted" = - ]; then wanted=$has; fi
    if [ "$sum" = "$3" ] && { [ "$sum" != - ] || [ "$has" = "$wanted" ]; }; then return; fi
    other=$(awk -v sum="$sum" '$2 == sum && sum != "-" { print $3; exit }' <<< "$list")
    if [ -n "$other" ]; then fail "$origin holds the text of $other: swapped or renamed"; fi
    if [ "$has" -lt "$wanted" ]; then fail "$origin has $has lines, not $wanted: truncated, or another text (ANY_TEXT=1 takes it)"; fi
    if [ "$has" -gt "$wanted" ]; then fail "$origin has $has lines, not $wanted: another text (ANY_TEXT=1 takes it)"; fi
    fail "$origin has $wanted lines, as it should, but another text, of SHA256 $sum, not $3 (ANY_TEXT=1 takes it)"
}

collect() {  # FOLDER OUT LIST: the texts of LIST, from FOLDER to OUT under their first name; ANY_TEXT=1 leaves out the sums
    local folder=$1 out=$2 list=$3 count sum names path missing=
    if [ -n "$dry" ]; then
        while read -r count sum names; do echo "# $folder/${names%% *} -> $out/${names%% *}: $count lines, SHA256 $sum"; done <<< "$list"
        return
    fi
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
    if [ -n "$dry" ]; then return; fi
    [ "$(lines "$1")" = "$(lines "$2")" ] || fail "$1 has $(lines "$1") lines and $2 has $(lines "$2"): they are not parallel"
}

# -- downloads ----------------------------------------------------------------------------------------------------------

fetch() {  # URL SHA256 FILE: download FILE, once; goes on where an interrupted download stopped. SHA256 of the text, or "-"
    local url=$1 sum=$2 file=$3 part resumed status got why
    local folder="name a folder that has ${file##*/} with RAW=FOLDER"
    if [ -n "$dry" ]; then show "" curl -fsSL -C - -o "$file" "$url"; return; fi
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

member() {  # ARCHIVE NAME: a file of a .tgz or .zip archive
    local unzip='import shutil, sys, zipfile; shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer)'
    case $1 in *.zip) run "$bin/python" -c "$unzip" "$1" "$2" ;; *) run tar -xzOf "$1" "$2" ;; esac
}

extract() {  # ARCHIVE NAME OUT
    if [ -n "$dry" ]; then echo "$(member "$1" "$2")> $3"; return; fi
    member "$1" "$2" > "$3.part" 2> /dev/null || fail "$1 is truncated or damaged, or has no $2"
    replace "$3.part" "$3"
}

test_set() {  # SET SOURCE TARGET PREFIX: both sides of a test set that sacreBLEU knows, as PREFIX.SOURCE and PREFIX.TARGET; 1 without a network
    local side out
    for side in "src:$4.$2" "ref:$4.$3"; do
        out=${side#*:}
        if [ -n "$dry" ]; then into "$out" "$bin/python" -m sacrebleu -t "$1" -l "$2-$3" --echo "${side%%:*}"; continue; fi
        mkdir -p "$(dirname "$4")"
        "$bin/python" -m sacrebleu -t "$1" -l "$2-$3" --echo "${side%%:*}" > "$out.part" 2> "$4.sacrebleu.err" || return 1
        replace "$out.part" "$out"
    done
}

fetch_list() {  # URL END FOLDER LIST: every text of LIST from URL/NAME END, NAME being its last name
    local url=$1 end=$2 folder=$3 count sum names
    while read -r count sum names; do
        fetch "$url/${names##* }$end" "$sum" "$folder/${names%% *}$end"
    done <<< "$4"
}

# -- sub-words and binarised data -----------------------------------------------------------------------------------------

learn_pieces() {  # SIZE FILE ...: a SentencePiece model of SIZE pieces, $work/spm
    if stale "$work/spm.model" "${@:2}"; then run "$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size "$1" "${@:2}"; fi
}

encode_pieces() {  # FILE ...: NAME.LANGUAGE in sub-words as NAME.sp.LANGUAGE
    local file
    for file; do
        if stale "${file%.*}.sp.${file##*.}" "$file" "$work/spm.model"; then
            filter "${file%.*}.sp.${file##*.}" "$file" "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm"
        fi
    done
}

binarise() {  # SOURCE TARGET [FLAG ...]: $work/{train,valid,test}.sp.* with one dictionary as $work/bin, whole or not at all
    stale "$work/bin/dict.$2.txt" "$work"/{train,valid,test}.sp.{"$1","$2"} || return 0
    run rm -rf "$work/bin" "$work/bin.part"
    into "$work/preprocess.log" "$bin/fairseq-preprocess" --source-lang "$1" --target-lang "$2" --joined-dictionary \
        --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" --destdir "$work/bin.part" "${@:3}"
    run mv "$work/bin.part" "$work/bin"
}

# -- models ---------------------------------------------------------------------------------------------------------------

# the width of the recipes' models, which train on a CPU
small=(--encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
       --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4)
