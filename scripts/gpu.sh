#!/usr/bin/env bash
# Train and measure on a GPU machine that reaches no network and has PyTorch, pip, sacreBLEU and SentencePiece.
#
#     bash scripts/gpu.sh pack FOLDER [PYTHON]      here: into FOLDER, the wheels that such a machine lacks
#     bash scripts/gpu.sh install FOLDER SITE       there: SITE, which serves the recipes as VENV
#     bash scripts/gpu.sh measure SITE WORK OUT     there: everything below, what comes of it into OUT
#
# PYTHON (python3.12) is an interpreter here of that machine's version: fairseq is compiled for it, without PyTorch, and then
# lacks only what nothing here uses. WORK holds what examples/multi30k (prepare.sh, train.sh ar, distill.sh) and
# examples/squad_qg (prepare.sh) made, in the folders multi30k and squad_qg. Training takes TRAIN_SECONDS (1800).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

pack() {  # folder, python
    local build
    build=$(mktemp -d)
    trap 'rm -rf "$build"' RETURN
    mkdir -p "$1"
    "${2:-python3.12}" -m venv "$build/venv"
    local pip=("$build/venv/bin/python" -m pip) own=(-q -c "$root/constraints.txt" --disable-pip-version-check)
    "${pip[@]}" install "${own[@]}" setuptools wheel cython numpy
    (unset CUDA_HOME; "${pip[@]}" wheel "${own[@]}" --no-build-isolation --no-deps --no-cache-dir -w "$1" \
        fairseq-fixed antlr4-python3-runtime==4.9.3 "$root")
    "${pip[@]}" download "${own[@]}" --no-deps -d "$1" hydra-core omegaconf bitarray
    rm -rf "$root/build"
}

install() {  # folder, site
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$2" "$1"/*.whl
    # no link: a linked interpreter does not find the packages of the environment that it is in
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$(python3 -c 'import sys; print(sys.executable)')" > "$2/bin/python"
    chmod +x "$2/bin/python"
    PYTHONPATH=$2 "$2/bin/python" -c "import fairseq.data.data_utils_fast, nar_plugins, torch
print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')" 2> /dev/null
}

measure() {  # site, work, out
    export VENV=$1 RATE=falling DEVICE=${DEVICE-} PYTHONPATH=$root:$1 OMP_NUM_THREADS=2 PYTHONWARNINGS=ignore
    local work=$2 out=$3 wide=$2/multi30k-256 deadline=$((SECONDS + ${TRAIN_SECONDS:-1800}))
    mkdir -p "$out" "$work/logs" "$wide"
    ln -sfn "$work/multi30k/bin" "$wide/bin"
    local large=(--max-tokens 16384 --save-interval 1000 --validate-interval 1000 --dropout 0.2)
    local width=(--encoder-embed-dim 256 --decoder-embed-dim 256)

    # example, model, folder, part of the time that is left, flags: trains as long as that. Half of it with a constant rate;
    # the updates that this made say how many the other half will make, in which the rate falls to nothing.
    train() {
        local log=$work/logs/$2-$(basename "$3").log seconds updates more
        seconds=$(python3 -c "print(max(5, ($deadline - $SECONDS) * $4 / 2 - 15))")
        bash "$root/examples/$1/train.sh" "$2" 1000000 "$3" "${@:5}" --warmup-updates 300 \
            --stop-time-hours "$(python3 -c "print($seconds / 3600)")" > "$log" 2>&1
        read -r updates more < <(python3 - "$log" "$seconds" <<'END'
import re, sys
text = open(sys.argv[1]).read()
updates = int(re.findall(r"\| num_updates (\d+)", text)[-1])
wall = float(re.findall(r"done training in ([\d.]+)", text)[-1])
print(updates, max(2, int(updates / wall * float(sys.argv[2]))))
END
        )
        bash "$root/examples/$1/train.sh" "$2" $((updates + more)) "$3" "${@:5}" --warmup-updates "$updates" \
            --reset-lr-scheduler --no-save-optimizer-state >> "$log" 2>&1
        echo "$2 in $(basename "$3"): $updates updates with a constant rate, then $more; $SECONDS s in all"
    }
    narrow_chain() { train multi30k kd-block "$work/multi30k" 1 "${large[@]}"; }
    wide_chain() {
        train multi30k ar "$wide" 0.3 "${large[@]}" "${width[@]}" --dropout 0.3
        "$VENV/bin/nar-distill" "$wide/bin" --teacher "$wide/ar/checkpoint_last.pt" --out "$wide/kd" --beam 5 --lenpen 1 \
            --batch-size 512 $DEVICE
        train multi30k kd-block "$wide" 1 "${large[@]}" "${width[@]}"
    }
    local sparse=(--save-interval 1000 --validate-interval 1000)
    squad() { train squad_qg bang "$work/squad_qg" 0.7 "${sparse[@]}"; }
    squad_pretrained() {
        train squad_qg pretrain "$work/squad_qg" 0.3 "${sparse[@]}"
        train squad_qg bang-pt "$work/squad_qg" 1 "${sparse[@]}"
    }

    local names=(${JOBS:-narrow_chain wide_chain squad squad_pretrained}) name
    for name in "${names[@]}"; do "$name" > "$work/logs/$name.log" 2>&1 & done
    wait  # a job that fails leaves its log; the others go on
    for name in "${names[@]}"; do tail -n 3 "$work/logs/$name.log"; done
    timings "$work" "$wide" 2>&1 | tee "$work/logs/timings.log" || true
    tar -C "$work" -cf - $(cd "$work" && ls -d {multi30k,multi30k-256}/kd-block/checkpoint_last.pt \
        squad_qg/{bang,bang-pt}/checkpoint_last.pt 2> /dev/null) | split -b 15m - "$out/models.tar."
    tar -C "$work" -czf "$out/logs.tgz" logs
}

timings() {  # work, wide: nothing else runs now
    local rows part
    for part in "$1/multi30k" "$2"; do
        [ -e "$part/kd-block/checkpoint_last.pt" ] || continue
        rows=(--system "fairseq's greedy search" "$part/kd-block/checkpoint_last.pt" "--generator beam --beam 1")
        for block in 1 2 4 8; do rows+=(--system "blockwise, $block a call" "$part/kd-block/checkpoint_last.pt" "--beam 1 --verify-block $block"); done
        rows+=(--system "blockwise, adaptive" "$part/kd-block/checkpoint_last.pt" "--beam 1")
        timeout 90 "$VENV/bin/nar-bench" "$part/bin" --flags "$DEVICE --remove-bpe sentencepiece" --reference "$1/multi30k/test.de" \
            --batch-sizes 1,8,32 --sentences 24,96,160 "${rows[@]}"
    done
    # a step of the full-scale recipe, as many samples as fit a batch of 64
    timeout 60 "$VENV/bin/fairseq-train" "$1/squad_qg/raw" --user-dir "$root/nar_plugins" --task bang_pretraining --arch bang_base \
        --criterion bang_loss --max-source-positions 512 --max-target-positions 512 --tokens-per-sample 512 --train-dtype bfloat16 \
        --optimizer adam --lr 3e-4 --batch-size 64 --max-update "${BASE_UPDATES:-60}" --log-interval 10 --no-progress-bar --no-save \
        --disable-validation --seed 1 $DEVICE 2>&1 | grep -o "num_updates=.*\|bsz=[0-9.]*\|ups=[0-9.]*" | tail -n 3
    "$VENV/bin/python" -c "import torch
if torch.cuda.is_available(): print(torch.cuda.get_device_name())"
}

case ${1:-} in
    pack) pack "${2:?pack needs a folder}" "${3:-}" ;;
    install) install "${2:?install needs the folder of pack}" "${3:?install needs a folder to install into}" ;;
    measure) measure "${2:?measure needs the folder of install}" "${3:?measure needs WORK}" "${4:?measure needs OUT}" ;;
    *) echo "gpu.sh: pack, install or measure, not '${1:-}'" >&2; exit 2 ;;
esac
