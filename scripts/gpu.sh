#!/usr/bin/env bash
# Train and measure on a GPU machine that reaches no network and has PyTorch, pip, sacreBLEU and SentencePiece.
#
#     bash scripts/gpu.sh pack FOLDER [PYTHON]      here: into FOLDER, the wheels that such a machine lacks
#     bash scripts/gpu.sh install FOLDER SITE       there: into SITE, which the recipes then use as VENV
#     bash scripts/gpu.sh measure SITE WORK OUT     there: everything below, logs and models into OUT
#
# PYTHON (python3.12) is a local interpreter of that machine's version: fairseq is compiled for it, without PyTorch, and then
# lacks only extensions that nothing here uses. WORK holds what examples/multi30k (prepare.sh, train.sh ar, distill.sh) and
# examples/squad_qg (prepare.sh) made, in the folders multi30k and squad_qg. The two recipes train at once; the numbers of updates
# can be set by the variables below, to fit the time that the machine is available. (--stop-time-hours does not help: fairseq
# also counts the hours of the checkpoint that a model is fine-tuned from.)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

pack() {  # folder, python
    local build
    build=$(mktemp -d)
    trap 'rm -rf "$build"' RETURN
    mkdir -p "$1"
    "${2:-python3.12}" -m venv "$build/venv"
    local pip=("$build/venv/bin/python" -m pip) flags=(-q -c "$root/constraints.txt" --disable-pip-version-check)
    "${pip[@]}" install "${flags[@]}" setuptools wheel cython numpy
    (unset CUDA_HOME; PYTHONPATH=$root/scripts/without_torch "${pip[@]}" wheel "${flags[@]}" --no-build-isolation --no-deps --no-cache-dir -w "$1" \
        fairseq-fixed antlr4-python3-runtime==4.9.3 "$root")
    "${pip[@]}" download "${flags[@]}" --no-deps -d "$1" hydra-core omegaconf bitarray
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
    : "${DEVICE=}"  # the recipes' own default is --cpu
    export DEVICE VENV=$1 PYTHONPATH=$root:$1 OMP_NUM_THREADS=2 PYTHONWARNINGS=ignore
    local work=$2 out=$3
    mkdir -p "$out" "$work/logs"
    # saved and validated at the end only; without Adam's moments three checkpoints are 45 MB
    local seldom=(--save-interval 100000 --validate-interval 100000 --no-save-optimizer-state)
    train() { bash "$root/examples/$1/train.sh" "$2" "$3" "$work/$1" "${seldom[@]}"; }
    heads() { train multi30k kd-frozen "${FROZEN_UPDATES:-}" && train multi30k kd-block "${BLOCK_UPDATES:-5000}"; }
    bang() {  # the numbers of updates that are not set are the recipe's
        train squad_qg bang-ar "${BANG_AR_UPDATES:-}" && train squad_qg bang "${BANG_UPDATES:-}" &&
            train squad_qg pretrain-ar "${PRETRAIN_AR_UPDATES:-}" && train squad_qg pretrain "${PRETRAIN_UPDATES:-}" &&
            train squad_qg bang-pt-ar "${BANG_UPDATES:-}" && train squad_qg bang-pt "${BANG_PT_UPDATES:-}"
    }

    local names=(${JOBS:-heads bang}) name
    for name in "${names[@]}"; do "$name" > "$work/logs/$name.log" 2>&1 & done
    wait  # one that fails leaves its log, and the others go on
    for name in "${names[@]}"; do echo "== $name"; tail -n 2 "$work/logs/$name.log" | cut -c1-400; done
    timings "$work" 2>&1 | tee "$work/logs/timings.log" || true
    tar -C "$work" -czf "$out/logs.tgz" logs
    tar -C "$work" -cf - $(cd "$work" && ls {multi30k/kd-block,squad_qg/bang,squad_qg/bang-pt}/checkpoint_last.pt 2> /dev/null) |
        split -b 15m - "$out/models.tar."
}

timings() {  # work: nothing else runs now
    local tuned=$1/multi30k/kd-block/checkpoint_last.pt systems block
    "$VENV/bin/python" -m pytest -q -p no:cacheprovider "$root/tests/unit" "$root/tests/parity" --device cuda | tail -n 5
    if [ -e "$tuned" ]; then
        systems=(--system "fairseq's greedy search" "$tuned" "--generator beam --beam 1")
        for block in 1 2 4 8; do systems+=(--system "blockwise, $block a call" "$tuned" "--beam 1 --verify-block $block"); done
        systems+=(--system "blockwise, adaptive" "$tuned" "--beam 1")
        "$VENV/bin/nar-bench" "$1/multi30k/bin" --flags "${DEVICE---cpu} --remove-bpe sentencepiece" --reference "$1/multi30k/test.de" \
            --batch-sizes 1,8,32 --sentences 24,96,160 "${systems[@]}"
    fi
    # steps of examples/bang_pretraining, at its batch of 64 samples
    "$VENV/bin/fairseq-train" "$1/squad_qg/raw" --user-dir "$root/nar_plugins" --task bang_pretraining --arch bang_base \
        --criterion bang_loss --max-source-positions 512 --max-target-positions 512 --tokens-per-sample 512 --train-dtype bfloat16 \
        --optimizer adam --lr 3e-4 --batch-size 64 --max-update 60 --log-interval 10 --no-progress-bar --no-save \
        --disable-validation --seed 1 ${DEVICE---cpu} 2>&1 | grep -o "bsz=[0-9.]*.*\|ups=[0-9.]*" | tail -n 2
}

case ${1:-} in
    pack) pack "${2:?pack needs a folder}" "${3:-}" ;;
    install) install "${2:?install needs the folder of pack}" "${3:?install needs a folder to install into}" ;;
    measure) measure "${2:?measure needs the folder of install}" "${3:?measure needs WORK}" "${4:?measure needs OUT}" ;;
    *) echo "gpu.sh: pack, install or measure, not '${1:-}'" >&2; exit 2 ;;
esac
