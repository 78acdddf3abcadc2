#!/usr/bin/env bash
# Blockwise decoding of the models that train.sh made from the teacher: is the output the same, and how much faster is it?
#     bash examples/multi30k/blockwise.sh [WORK] [NEWS]
# NEWS (or NEWS=FOLDER) holds newstest2014's test.en and test.de, plain, .gz or .xz; without it sacreBLEU downloads them.
# First the output of the model with a frozen base, and of the teacher with training-free drafters, is compared token by token
# with fairseq's greedy search of the teacher. Then all are timed side by side at batch 1, 8 and 32.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/multi30k}
news=${2:-${NEWS:-}}
ar=$work/ar/checkpoint_last.pt frozen=$work/kd-frozen/checkpoint_last.pt tuned=$work/kd-block/checkpoint_last.pt
for checkpoint in "$ar" "$frozen" "$tuned"; do
    [ -e "$checkpoint" ] || fail "no $checkpoint: train ar, kd-frozen and kd-block first"
done

compare() {  # data
    "$bin/python" "$root/benchmarks/check_blockwise.py" "$1" $device --ar "$ar" --system "frozen heads" "$frozen" "" \
        --system "frozen heads, 8 a call" "$frozen" "--verify-block 8" --system "jacobi, untouched" "$ar" "--drafter jacobi" \
        --system "copy, untouched" "$ar" "--drafter copy" "${drafted[@]}"
}
drafted=()
if [ -e "$work/kd-ctc/checkpoint_last.pt" ]; then
    drafted=(--system "drafts of nat, CTC" "$ar" "--drafter-path $work/kd-ctc/checkpoint_last.pt")
fi
echo "Multi30k's test set"
compare "$work/bin"
# All 3,003 lines of newstest2014. sacreBLEU checks the archive that it downloads; of a folder only the lines are counted,
# because editions of this test set differ in white space and quotation marks.
if [ -z "$news" ] && [ ! -e "$work/news/test.de" ]; then
    test_set wmt14/full en de "$work/news/test" || true
fi
if [ -n "$news" ]; then collect "$news" "$work/news" "3003 - test.en"$'\n'"3003 - test.de"; fi
if [ -e "$work/news/test.de" ]; then
    parallel "$work/news/test.en" "$work/news/test.de"
    encode_pieces "$work"/news/test.{en,de}
    [ -e "$work/news/bin/dict.de.txt" ] ||
        into "$work/news/preprocess.log" "$bin/fairseq-preprocess" --source-lang en --target-lang de --joined-dictionary \
            --srcdict "$work/bin/dict.en.txt" --testpref "$work/news/test.sp" --destdir "$work/news/bin"
    echo "newstest2014"
    compare "$work/news/bin"
else
    echo "newstest2014 is left out, sacreBLEU cannot download it ($(tail -n 1 "$work/news/test.sacrebleu.err")): name a folder with NEWS=FOLDER"
fi

frequent="--draft-vocab-size 1500"  # of 6,000
tuned_systems=(--system "fairseq's greedy search" "$tuned" "--generator beam --beam 1")
for block in 1 2 4 8; do tuned_systems+=(--system "blockwise, $block a call" "$tuned" "--beam 1 --verify-block $block"); done
tuned_systems+=(--system "blockwise, adaptive" "$tuned" "--beam 1" --system "blockwise, adaptive, frequent words" "$tuned" "--beam 1 $frequent")
systems=(--system "teacher: fairseq's greedy search" "$ar" "--generator beam --beam 1"
      --system "teacher: frozen heads, 1 a call" "$frozen" "--beam 1 --verify-block 1"
      --system "teacher: frozen heads, 8 a call" "$frozen" "--beam 1 --verify-block 8"
      --system "teacher: frozen heads, adaptive" "$frozen" "--beam 1"
      --system "teacher: frozen heads, adaptive, frequent words" "$frozen" "--beam 1 $frequent"
      --system "teacher: jacobi" "$ar" "--generator blockwise --drafter jacobi --beam 1"
      --system "teacher: copy" "$ar" "--generator blockwise --drafter copy --beam 1")
if [ -e "$work/kd-ctc/checkpoint_last.pt" ]; then
    systems+=(--system "teacher: drafts of nat, CTC" "$ar" "--generator blockwise --beam 1 --drafter-path $work/kd-ctc/checkpoint_last.pt")
fi
bounded="--max-len-a 1.5 --max-len-b 10"  # an output that repeats itself up to the limit would take most of the time
"$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece $bounded" --reference "$work/test.de" \
    --batch-sizes 1,8,32 --sentences "${SENTENCES:-100,320,640}" "${tuned_systems[@]}" "${systems[@]}"
echo "batch 1 again, medians of nine"
"$bin/nar-bench" "$work/bin" --flags "$device --remove-bpe sentencepiece $bounded" --reference "$work/test.de" \
    --batch-sizes 1 --sentences 40 --repeats 9 "${tuned_systems[@]}"
