# What the translation recipes share beyond lib.sh: text to sub-words, the systems, distillation, decoding. To be sourced:
#
#     . "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
#     recipe wmt14_en_de en de bpe WORK
#
# A recipe's own scripts are tables: which text, which hyper-parameters for which system (with their source), which
# decodings. All of them take
#
#   --dry-run        print every command, with all flags, and run nothing; no data are needed
#   MINI=1           the whole recipe on 200 generated lines, with a tiny model and two updates: does it run?
#   DIRECTION=de-en  the other direction (in a folder of its own)
#   PIECES=spm       SentencePiece on raw text in the place of Moses' tokens and BPE (bpe), or the other way round
#   GPUS=8 MAX_TOKENS=4096   devices, and target tokens per batch of each; --update-freq makes up the rest of an update
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
mini=${MINI:-}
for argument; do  # the script's arguments without --dry-run
    shift
    if [ "$argument" = --dry-run ]; then dry=yes; else set -- "$@" "$argument"; fi
done

recipe() {  # NAME SOURCE TARGET PIECES [WORK]: $source, $target, $pieces, and $work, where all is kept; raw text in $texts
    local direction=${DIRECTION:-$2-$3}
    case $direction in "$2-$3" | "$3-$2") ;; *) fail "DIRECTION=$direction is neither $2-$3 nor $3-$2" ;; esac
    source=${direction%-*} target=${direction#*-}
    work=${5:-$root/work/${mini:+mini/}${1/$2_$3/${source}_$target}}
    pieces=${PIECES:-$4}
    case $pieces in bpe | spm) ;; *) fail "PIECES=$pieces is neither bpe nor spm" ;; esac
    if [ -z "$dry" ] && [ -e "$work/settings" ]; then
        read -r prepared _ < "$work/settings"
        [ "$pieces" = "$prepared" ] || [ -z "${PIECES:-}" ] ||
            fail "$work was prepared with PIECES=$prepared, not $pieces: name another WORK"
        pieces=$prepared
    fi
    case $pieces in bpe) remove_bpe=subword_nmt ;; spm) remove_bpe=sentencepiece ;; esac
    texts=$work teacher=${TEACHER:-$work/ar/average.pt} reference=$work/test.$target
}

need() {  # FILE REMEDY
    [ -n "$dry" ] || [ -e "$1" ] || fail "no $1: $2"
}

prepared() {  # [OPTION ...]: is $work/bin there, made with these options? Any other use of $work is refused
    local settings="$pieces${mini:+ mini}${1:+ $*}"
    if [ -n "$dry" ]; then return 1; fi
    if [ -e "$work/settings" ] && [ "$(cat "$work/settings")" != "$settings" ]; then
        fail "$work was prepared as '$(cat "$work/settings")', not '$settings': name another WORK"
    fi
    if [ -e "$work/bin/dict.$target.txt" ] && [ -e "$work/bin/test.$source-$target.$target.idx" ]; then
        echo "$script: $work/bin is there already"
        return
    fi
    mkdir -p "$work"
    echo "$settings" > "$work/settings"
    return 1
}

# -- raw text ---------------------------------------------------------------------------------------------------------------

mini_text() {  # 200, 20 and 20 lines of the quickstart's English-German corpus, whatever the recipe's languages are called
    local split side from
    if [ -z "$dry" ]; then mkdir -p "$texts"; fi
    run "$bin/python" "$root/examples/quickstart/corpus.py" "$work/corpus" --pairs 200
    for split in train:200 valid:20 test:20; do for side in "$source" "$target"; do
        from=$work/corpus/${split%:*}.de
        if [ "$side" = en ]; then from=${from%.de}.en; fi
        if [ -n "$dry" ]; then into "$texts/${split%:*}.$side" head -n "${split#*:}" "$from"; continue; fi
        head -n "${split#*:}" "$from" > "$texts/text.part"
        replace "$texts/text.part" "$texts/${split%:*}.$side"
    done; done
}

has_split() {  # FOLDER SPLIT: has it one of the two sides?
    [ -n "$1" ] && { find_text "$1" "$2.$source" || find_text "$1" "$2.$target"; } > /dev/null
}

collect_split() {  # FOLDER SPLIT LINES: both sides, to $texts
    collect "$1" "$texts" "$3 - $2.$source"$'\n'"$3 - $2.$target"
}

archive() {  # FOLDER URL SHA256: $archive is FOLDER's file of that name or, without FOLDER, a download
    archive=${1:-$work/download}/${2##*/}
    if [ -z "$1" ]; then fetch "$2" "$3" "$archive"; else need "$archive" "'$1' has neither it nor train.$source and train.$target"; fi
}

training_text() {  # FOLDER LIST: $texts/train.* from FOLDER's train.*, or from archives. LIST: LINES SHA256 URL MEMBER
    # MEMBER is the name in the archive without its language.
    local folder=$1 count sum url prefix side file parts=()
    [ -z "$folder" ] || [ -n "$dry" ] || [ -d "$folder" ] || fail "no folder '$folder'"
    if has_split "$folder" train; then collect_split "$folder" train -; return; fi
    if [ -z "$dry" ]; then mkdir -p "$work/parts" "$texts"; fi
    while read -r count sum url prefix; do
        archive "$folder" "$url" "$sum"
        parts+=("$work/parts/${prefix##*/}")
        for side in "$source" "$target"; do
            file=$work/parts/${prefix##*/}.$side
            if stale "$file" "$archive"; then extract "$archive" "$prefix.$side" "$file"; fi
            if [ -z "$dry${ANY_TEXT:-}" ]; then check "$file" "$count" - "" "$archive's $prefix.$side"; fi
        done
    done <<< "$2"
    for side in "$source" "$target"; do join "$texts/train.$side" "${parts[@]/%/.$side}"; done
}

join() {  # OUT FILE ...
    if [ -n "$dry" ]; then into "$1" cat "${@:2}"; return; fi
    stale "$@" || return 0
    cat "${@:2}" > "$1.part"
    replace "$1.part" "$1"
}

evaluation_text() {  # FOLDER SPLIT SET LINES: $texts/SPLIT.* from FOLDER, or sacreBLEU's SET
    local side
    if has_split "$1" "$2"; then collect_split "$1" "$2" "$4"; return; fi
    test_set "$3" "$source" "$target" "$texts/$2" ||
        fail "sacreBLEU cannot download $3 ($(tail -n 1 "$texts/$2.sacrebleu.err"))": \
            "name a folder that has $2.$source and $2.$target with RAW=FOLDER"
    for side in "$source" "$target"; do if [ -z "$dry${ANY_TEXT:-}" ]; then check "$texts/$2.$side" "$4" - ""; fi; done
}

# -- sub-words --------------------------------------------------------------------------------------------------------------

prepare_pieces() {  # SIZE LONGEST RATIO [FLAG ...]: $work/bin from $work/{train,valid,test}.*
    # The training text is cleaned by its pieces (see clean_pairs; LONGEST "-": not). FLAGs are those of text.py tokenise;
    # --lower holds for SentencePiece, too.
    local size=$1 longest=$2 ratio=$3 split side from to form model encode
    if [ -n "$mini" ]; then size=300; fi
    for split in train valid test; do parallel "$work/$split.$source" "$work/$split.$target"; done
    make_forms "${@:4}"
    learn_encoding "$size"
    for split in train valid test; do for side in "$source" "$target"; do
        from=$work/$split$form.$side to=$work/$split.sp.$side
        if [ $split = train ] && [ "$longest" != - ]; then to=$work/train.all.$side; fi
        if stale "$to" "$from" "$model"; then filter_in_parts "$to" "$from" "${encode[@]}"; fi
    done; done
    if [ "$longest" != - ]; then clean_pairs "$work/train.all" "$longest" "$ratio" "$work/train.all" "$work/train.sp"; fi
    binarise "$source" "$target" --workers "$workers"
}

make_forms() {  # [FLAG ...]: what the pieces are cut from, SPLIT$form.*: the raw text, lower-cased, or Moses' tokens
    local text=("$bin/python" "$root/scripts/text.py") lower=
    form=
    case " $* " in *" --lower "*) lower=yes form=.lower ;; esac
    if [ "$pieces" = bpe ]; then form=.tok; fi
    for split in train valid test; do for side in "$source" "$target"; do
        from=$work/$split.$side
        if [ -n "$lower" ] && stale "$work/$split.lower.$side" "$from"; then
            filter "$work/$split.lower.$side" "$from" "${text[@]}" lower
        fi
        if [ "$form" = .tok ] && stale "$work/$split.tok.$side" "$from"; then
            filter_in_parts "$work/$split.tok.$side" "$from" "${text[@]}" tokenise --language "$side" "$@"
        fi
    done; done
}

learn_encoding() {  # SIZE: $model of the training text, and $encode, the command that cuts by it
    local text=("$bin/python" "$root/scripts/text.py") files=("$work/train$form.$source" "$work/train$form.$target")
    case $pieces in
        bpe) model=$work/bpe.codes encode=("${text[@]}" bpe --codes "$work/bpe.codes")
            if stale "$model" "${files[@]}"; then filter "$model" /dev/null "${text[@]}" learn-bpe --merges "$1" "${files[@]}"; fi ;;
        spm) model=$work/spm.model encode=("$bin/python" "$root/scripts/spm.py" encode --model "$work/spm")
            learn_pieces "$1" "${files[@]}" ;;
    esac
}

clean_pairs() {  # JUDGE LONGEST RATIO PREFIX OUT [PREFIX OUT ...]: without pairs that JUDGE's tokens, LONGEST and RATIO rule out
    local judge=("$1.$source" "$1.$target") limits=(--longest "$2" --ratio "$3") files=() side
    shift 3
    stale "$2.$source" "${judge[@]}" || return 0
    while [ $# -gt 0 ]; do
        for side in "$source" "$target"; do files+=("$1.$side" "$2.$side"); done
        shift 2
    done
    run "$bin/python" "$root/scripts/text.py" clean --judge "${judge[@]}" "${limits[@]}" "${files[@]}"
}

# -- training ---------------------------------------------------------------------------------------------------------------

smooth=(--label-smoothing 0.1)
adam=(--optimizer adam --adam-betas "(0.9, 0.98)" --adam-eps 1e-9)  # Vaswani et al. 2017, section 5.3
bert_adam=(--optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-6 --weight-decay 0.01)  # Mask-Predict's release

task=(--task nar_translation --train-dtype auto)

choose() {  # MODEL [UPDATES] [WORK] [FLAG ...]: what is trained, $model, and which system that is, $kind
    model=${1:-} wanted_updates=${2:-} more=("${@:4}") updates=0
    kind=${model#kd-}
    case $wanted_updates in *[!0-9]*) fail "UPDATES is a number, not '$wanted_updates'" ;; esac
}

sized() {  # DIM FFN HEADS LAYERS: of encoder and decoder
    if [ -n "$mini" ]; then set -- 16 32 2 1; fi
    sizes=(--encoder-embed-dim "$1" --encoder-ffn-embed-dim "$2" --encoder-attention-heads "$3" --encoder-layers "$4"
           --decoder-embed-dim "$1" --decoder-ffn-embed-dim "$2" --decoder-attention-heads "$3" --decoder-layers "$4"
           --share-all-embeddings)
}

plan() {  # UPDATES TOKENS RATE WARM-UP [FLAG ...]: the training's length, batch, learning rate and what else the table says
    # TOKENS: in an update of all devices. WARM-UP in updates; "-": a constant rate; "linear": up for a tenth, then down to 0.
    local tokens=$2 batch=${MAX_TOKENS:-4096} gpus=${GPUS:-1} warmup=$4
    updates=${wanted_updates:-$1}
    if [ -n "$mini" ]; then updates=2 warmup=${warmup/[0-9]*/1} tokens=600 batch=600; fi
    if [ "$batch" -gt "$tokens" ]; then batch=$tokens; fi
    planned=(--max-update "$updates" --max-tokens "$batch" --update-freq $(((tokens + batch * gpus - 1) / (batch * gpus)))
             --distributed-world-size "$gpus" --lr "$3" "${@:5}")
    case $warmup in
        -) planned+=(--lr-scheduler fixed) ;;
        linear) planned+=(--lr-scheduler polynomial_decay --warmup-updates $((updates / 10)) --total-num-update "$updates") ;;
        *) planned+=(--lr-scheduler inverse_sqrt --warmup-updates "$warmup" --warmup-init-lr 1e-7) ;;
    esac
}

# Seventy-two checkpoints a run, a distance of ten minutes in the twelve hours of Vaswani et al. 2017, section 6.1, who
# average the last five. Of the parallel models the five best by validation BLEU, as Mask-Predict did.
standard_saving() {  # [CHECKPOINTS]
    saved=(--save-interval-updates $((updates / ${1:-72} + 1)) --keep-interval-updates 5 --no-epoch-checkpoints)
    case $kind in ar | ar-12-1 | frozen | block) return ;; esac
    saved+=(--eval-bleu --eval-bleu-remove-bpe "$remove_bpe" --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
            --keep-best-checkpoints 5)
}

system() {  # $what makes $kind the model that it is: architecture, criterion, start. The recipe decides on all else
    local prefix=${model%"$kind"}
    case $kind in
        ar) what=(--arch transformer --criterion label_smoothed_cross_entropy "${smooth[@]}") ;;
        ar-12-1)  # Kasai et al. 2021: a deep encoder, a shallow decoder
            what=(--arch transformer --criterion label_smoothed_cross_entropy "${smooth[@]}" --encoder-layers 12 --decoder-layers 1) ;;
        nat | nat-ft)  # Gu et al. 2018, section 3: the encoder starts from the teacher's; no label smoothing
            what=(--arch nat --positional-attention --mask-diagonal --layerwise-attention --criterion nar_loss)
            if [ "$kind" = nat ]; then what+=(--init-encoder-from "$teacher")
            else what+=(--teacher "$teacher" --finetune-from-model "$work/${prefix}nat/checkpoint_best.pt"); fi ;;
        glat)  # Qian et al. 2021: a reference token is revealed for half of the errors, at the end for three of ten
            what=(--arch nat --source-copy uniform --glancing "0.5:0.3@$updates" --criterion nar_loss "${smooth[@]}") ;;
        ctc)  # Libovicky and Helcl 2018 with glancing; CTC has no label smoothing
            what=(--arch nat --ctc --upsample 2 --glancing "0.5:0.3@$updates" --criterion nar_loss) ;;
        dag)  # Huang et al. 2022 (DA-Transformer), wmt14_ende.sh: learned positions, GELU, no label smoothing; sizes are given.
            # 2,048 vertices are sources of 256 tokens. The script has 1,024, and its graphs of longer ones are cut
            what=(--arch dag_wmt_en_de --upsample 8 --glancing "0.5:0.1@$((updates * 2 / 3 + 1))" --max-target-positions 2048
                  --criterion nar_loss) ;;
        cmlm) what=(--arch cmlm_wmt_en_de --criterion nar_loss "${smooth[@]}") ;;  # the release's form; sizes are given
        frozen | block)  # Stern et al. 2018, section 6: 8 heads on a trained model, one random head an update
            what=(--arch blockwise --block-size 8 --block-head full --block-loss sample --criterion blockwise_loss "${smooth[@]}"
                  --finetune-from-model "$teacher")
            if [ "$kind" = frozen ]; then what+=(--freeze-base); fi ;;
        bang-ar | bang)  # Qi et al. 2021; without their pre-training the autoregressive stream is trained first
            what=(--arch bang --max-source-positions 512 --max-target-positions 512 --criterion bang_loss "${smooth[@]}")
            if [ "$kind" = bang-ar ]; then what+=(--ngram 1)
            else what+=(--bang-rows sample:2 --finetune-from-model "$work/${prefix}bang-ar/checkpoint_best.pt"); fi ;;
        *) fail "no model '$model': ar, ar-12-1, nat, nat-ft, glat, ctc, dag, cmlm, frozen, block, bang-ar or bang;" \
            "on distilled data kd-ar etc." ;;
    esac
}

need_teacher() {
    case $teacher in "$work/ar/average.pt") average ar last:5 ;; esac
    need "$teacher" "train ar first"
}

needs() {  # the files that $kind starts from
    need "$data/dict.$target.txt" "run prepare.sh, and for kd-models train.sh ar and distill.sh"
    case $kind in
        nat | nat-ft | frozen | block) need_teacher ;;
    esac
    case $kind in
        nat-ft) need "$work/${model%-ft}/checkpoint_best.pt" "train ${model%-ft} first" ;;
        bang) need "$work/$model-ar/checkpoint_best.pt" "train $model-ar first" ;;
    esac
}

train() {  # $model by $what, $sizes, $planned, $saved and what the command line adds; not again where the same was trained
    data=$work/bin
    case $model in kd-*) data=$work/kd ;; esac
    needs
    case $kind in nat | nat-ft) align ;; esac
    local command=("$bin/fairseq-train" "$data" --user-dir "$root/nar_plugins" "${task[@]}" "${sizes[@]}" "${what[@]}"
        "${planned[@]}" "${saved[@]}" --save-dir "$work/$model" --seed 1 --no-progress-bar --log-interval 100
        $device "${more[@]+"${more[@]}"}")
    if [ -z "$dry" ] && [ "$(cat "$work/$model/trained" 2> /dev/null)" = "$(show "" "${command[@]}")" ]; then
        echo "$model: trained already"
        return
    fi
    run "${command[@]}"
    if [ -z "$dry" ]; then show "" "${command[@]}" > "$work/$model/trained"; fi
}

align() {  # fertilities of $data
    if stale "$data/train.$source-$target.fert" "$data/dict.$target.txt"; then run "$bin/nar-align" "$data"; fi
}

averaged=" "  # in this run

average() {  # MODEL WHICH: $checkpoint is its last, its best, or the mean of its last:N or best:N
    checkpoint=$work/$1/checkpoint_${2%:*}.pt
    case $2 in *:*) ;; *) return 0 ;; esac
    local number=${mini:+2}
    need "$work/$1/checkpoint_last.pt" "train $1 first"
    checkpoint=$work/$1/average.pt
    case $averaged in *" $1 "*) return 0 ;; esac
    averaged="$averaged$1 "
    if stale "$checkpoint" "$work/$1/checkpoint_last.pt"; then
        run "$bin/nar-average" "--${2%:*}" "${number:-${2#*:}}" "$work/$1" --out "$checkpoint"
    fi
}

distil() {  # FLAG ...: the teacher's translations of the training text (Kim and Rush 2016), and their fertilities; resumable
    need_teacher
    run "$bin/nar-distill" "$work/bin" --teacher "$teacher" --out "$work/kd" --max-tokens "${MAX_TOKENS:-4096}" "$@" $device
    data=$work/kd
    align
}

# -- decoding ---------------------------------------------------------------------------------------------------------------

is_there() {  # MODEL: has it been trained, and is it one of MODELS?
    case " ${MODELS:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
    [ -n "$dry" ] || [ -e "$work/$1/checkpoint_last.pt" ]
}

decode() {  # NAME MODEL WHICH [FLAG ...]: decode the test set with a model and score it, where it has been trained
    is_there "$2" || return 0
    average "$2" "$3"
    local out
    out=$work/generated/$(tr -cs 'A-Za-z0-9\n' - <<< "$1").out
    local command=("$bin/fairseq-generate" "$work/bin" --user-dir "$root/nar_plugins" --task nar_translation --path "$checkpoint"
        --max-tokens "${MAX_TOKENS:-4096}" --remove-bpe "$remove_bpe" "${@:4}" $device)
    if [ "$pieces" = bpe ]; then command+=(--tokenizer moses --source-lang "$source" --target-lang "$target"); fi
    if [ -z "$dry" ]; then mkdir -p "$work/generated"; fi
    if stale "$out" "$checkpoint" || [ "$(cat "$out.command" 2> /dev/null)" != "$(show "" "${command[@]}")" ]; then
        rm -f "$out.command"
        into "$out" "${command[@]}"
        if [ -z "$dry" ]; then show "" "${command[@]}" > "$out.command"; fi
    fi
    echo "# $1"
    run "$bin/nar-score" "$out" "$reference"  # detokenised, against the raw reference
    if [ "$pieces" = bpe ]; then  # tokenised, as the papers do
        if [ -n "$dry" ]; then echo "sed -n 's/^H-//p' $out | sort -n | cut -f 3 > $out.tok"
        else sed -n 's/^H-//p' "$out" | sort -n | cut -f 3 > "$out.tok"; fi
        run "$bin/nar-score" --tokenize none "$out.tok" "$work/test.tok.$target"
    fi
}

decode_all() {  # FLAG ...: every system as its paper does; the autoregressive ones with FLAGs, the teacher also greedily
    local model passes rescored=(--rescorer "$teacher") bounded=(--max-len-a 1.5 --max-len-b 10)
    decode "ar greedy" ar last:5 --beam 1
    for model in ar kd-ar ar-12-1 kd-ar-12-1; do decode "$model beam" $model last:5 "$@"; done
    for model in nat kd-nat nat-ft kd-nat-ft; do  # Gu et al. 2018, section 5: one checkpoint
        decode "$model" $model best
        decode "$model NPD 10" $model best --generator noisy_parallel --fertility-samples 10 "${rescored[@]}"
        decode "$model NPD 100" $model best --generator noisy_parallel --fertility-samples 100 "${rescored[@]}"
    done
    for model in glat kd-glat; do  # Qian et al. 2021: one length, or seven, rescored
        decode "$model" $model best:5
        decode "$model NPD 7" $model best:5 --length-beam 7 "${rescored[@]}"
    done
    for model in ctc kd-ctc; do
        decode "$model" $model best:5
        decode "$model beam 10 rescored" $model best:5 --ctc-beam 10 "${rescored[@]}"
    done
    for model in dag kd-dag; do  # Huang et al. 2022, section 3.5, and Shao et al. 2022; repetitions are dropped as in the release
        decode "$model greedy" $model best:5 --dag-decode greedy --dedup token
        decode "$model" $model best:5 --dedup token
        decode "$model joint Viterbi" $model best:5 --dag-decode joint-viterbi --dedup token
        decode "$model joint Viterbi 5 rescored" $model best:5 --dag-decode joint-viterbi --length-beam 5 --dedup token "${rescored[@]}"
    done
    for model in cmlm kd-cmlm; do for passes in 1 4 10; do  # Ghazvininejad et al. 2019, section 4: five lengths
        decode "$model R $passes" $model best:5 --iterations $passes --length-beam 5
    done; done
    for model in frozen kd-frozen block kd-block; do  # Stern et al. 2018, section 7.1: greedy, exact acceptance
        decode "$model" $model last --beam 1 --verify-block 8
    done
    for model in bang kd-bang; do  # bounded: a one-pass policy computes a mask for every position up to the limit
        decode "$model AR beam 4" $model best --bang-policy ar --beam 4 --lenpen 1.2 "${bounded[@]}"  # the release's
        decode "$model adaptive" $model best --bang-policy adaptive "${bounded[@]}"
        decode "$model one pass" $model best --bang-policy nar "${bounded[@]}"
    done
}

export_onnx() {  # MODEL [FLAG ...]: its last checkpoint in the folder $exported, checked against PyTorch
    exported=$work/onnx/$1${2:+$2}
    local checkpoint=$work/$1/checkpoint_last.pt
    if ! stale "$exported/config.json" "$checkpoint"; then return 0; fi
    if [ -z "$dry" ]; then rm -rf "$exported"; mkdir -p "$work/onnx"; fi
    run "$bin/nar-export" onnx "$checkpoint" --data "$work/bin" --out "$exported" "${@:2}"
}

compare_onnx() {  # NAME MODEL FLAGS: the same by ONNX Runtime, in float32 and int8, where it is installed
    is_there "$2" && onnx_runs || return 0
    export_onnx "$2"
    systems+=(--system "$1, ONNX Runtime" "onnx:$exported" "$3")
    if onnx_int8_runs; then
        export_onnx "$2" --int8
        systems+=(--system "$1, ONNX Runtime, int8" "onnx:$exported" "$3")
    fi
}

compare() {  # NAME MODEL FLAGS: the last checkpoint of a model, where it has been trained, for nar-bench's table, in $systems
    if is_there "$2"; then systems+=(--system "$1" "$work/$2/checkpoint_last.pt" "$3"); fi
}

compare_int8() {  # as compare, and once more in int8 where that runs
    compare "$1" "$2" "$3"
    if int8_runs; then compare "$1, int8" "$2" "${3:+$3 }--decode-dtype int8"; fi
}
