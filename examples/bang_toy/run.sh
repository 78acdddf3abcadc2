#!/usr/bin/env bash
# Train one BANG model on a task with two right answers and decode it with every policy: bash examples/bang_toy/run.sh [WORK] [UPDATES]
# Some minutes on a CPU core.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/bang_toy}
updates=${2:-1500}
ours=(--user-dir "$root/nar_plugins" --task nar_translation $device)

mkdir -p "$work"
if [ ! -e "$work/bin/dict.src.txt" ]; then
    "$bin/python" "$root/examples/bang_toy/toy.py" make "$work"
    into "$work/preprocess.log" "$bin/fairseq-preprocess" -s src -t tgt --joined-dictionary --trainpref "$work/train" \
        --validpref "$work/valid" --testpref "$work/test" --destdir "$work/bin"
fi
"$bin/fairseq-train" "$work/bin" "${ours[@]}" --arch bang_tiny --criterion bang_loss \
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1 --lr 2e-3 --lr-scheduler polynomial_decay \
    --total-num-update "$updates" --warmup-updates 200 --max-update "$updates" --batch-size 48 --seed 1 \
    --save-dir "$work/bang" --no-epoch-checkpoints --no-progress-bar --log-interval 100

declare -a systems
decode() {  # name, flags
    local out=$work/${1// /_}.out
    into "$out" "$bin/fairseq-generate" "$work/bin" "${ours[@]}" --path "$work/bang/checkpoint_last.pt" --batch-size 50 \
        --max-len-b 10 "${@:2}"
    systems+=("$1=$out")
}
decode "ar" --bang-policy ar --beam 1
decode "block 2" --bang-policy block --bang-block 2 --print-step
decode "block 4" --bang-policy block --bang-block 4 --print-step
decode "nar" --bang-policy nar --print-step
decode "prefix 1" --bang-policy prefix --bang-prefix 1 --print-step
for tau in 0.3 0.7 0.9 0.99; do decode "adaptive $tau" --bang-tau $tau --print-step; done
for block in 2 4 8; do decode "verify $block" --bang-policy verify --bang-block $block --print-step; done
decode "cascade" --bang-policy cascade --print-step
"$bin/python" "$root/examples/bang_toy/toy.py" table "$work" "${systems[@]}"
