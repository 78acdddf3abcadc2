#!/usr/bin/env bash
# From a clone to a table: set up, generate a corpus, train an autoregressive model, train proposal heads for it, distil the corpus
# with it, train parallel models on the distilled corpus, decode with all, compare.
#
#     bash scripts/quickstart.sh [--models ar,blockwise,cmlm,nat,ctc,bang] [--work FOLDER]
#
# Without --models: ar, blockwise and cmlm, under ten minutes on two CPU cores after the set-up; the
# others take longer (examples/quickstart/EXPECTED.md). A second run continues where the first one stopped. DEVICE="" uses the GPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
models=ar,blockwise,cmlm
work=$root/work/quickstart
while [ $# -gt 0 ]; do
    case $1 in
        --models) models=${2:?--models needs a list}; shift 2 ;;
        --work) work=${2:?--work needs a folder}; shift 2 ;;
        *) echo "quickstart.sh: unknown argument '$1': --models or --work" >&2; exit 2 ;;
    esac
done
for model in ${models//,/ }; do
    case $model in ar | blockwise | cmlm | nat | ctc | bang) ;; *) echo "quickstart.sh: no model '$model': ar, blockwise, cmlm, nat, ctc and bang are there" >&2; exit 2 ;; esac
done

"$root/scripts/setup.sh"
export VENV=${VENV:-$root/.venv}
mkdir -p "$work"
step() { echo; echo "== $1 ($(date +%H:%M:%S))"; }
progress() { grep --line-buffered -oE "epoch [0-9]+:.*num_updates=[0-9]+|valid on .*" | sed -u 's/, ppl=.*num_updates/, num_updates/'; }

step "data"
bash "$root/examples/quickstart/prepare.sh" "$work"
for model in ${models//,/ }; do
    if [ "$model" != ar ] && [ -e "$work/ar/done" ] && [ ! -e "$work/kd.done" ]; then
        step "distilled data"
        bash "$root/examples/quickstart/distill.sh" "$work"
    fi
    step "training $model; the whole log is in $work/$model.log"
    bash "$root/examples/quickstart/train.sh" "$model" "$work" 2>&1 | tee -a "$work/$model.log" | progress || true
    [ -e "$work/$model/done" ] || { tail -n 20 "$work/$model.log" >&2; echo "quickstart.sh: training $model failed" >&2; exit 1; }
done
step "decoding and comparing"
bash "$root/examples/quickstart/generate.sh" "$models" "$work"
