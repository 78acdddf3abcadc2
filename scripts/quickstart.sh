#!/usr/bin/env bash
# From a clone to a table: set up, generate a corpus, train an autoregressive model, distil the corpus with it, train proposal heads
# for it and parallel models on the distilled corpus, decode with all, compare.
#
#     bash scripts/quickstart.sh [--models ar,blockwise,cmlm,nat,ctc,dag,bang] [--work FOLDER]
#
# Without --models: ar, blockwise and ctc, ten minutes on two CPU cores after the set-up; the others take longer
# (examples/quickstart/EXPECTED.md). A second run continues where the first one stopped. DEVICE="" uses the GPU.
# Beside the table there are a plot (speed.png) and a page of outputs (examples.md) in the work folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
models=ar,blockwise,ctc
work=$root/work/quickstart
while [ $# -gt 0 ]; do
    case $1 in
        --models) models=${2:?--models needs a list}; shift 2 ;;
        --work) work=${2:?--work needs a folder}; shift 2 ;;
        *) echo "quickstart.sh: unknown argument '$1': --models or --work" >&2; exit 2 ;;
    esac
done
seen=" "
for model in ${models//,/ }; do
    case $seen in *" $model "*) echo "quickstart.sh: --models names '$model' twice" >&2; exit 2 ;; esac
    seen="$seen$model "
    case $model in ar | blockwise | cmlm | nat | ctc | dag | bang) ;; *) echo "quickstart.sh: no model '$model': ar, blockwise, cmlm, nat, ctc, dag and bang are there" >&2; exit 2 ;; esac
done

"$root/scripts/setup.sh"
export VENV=${VENV:-$root/.venv}
mkdir -p "$work"
step() { echo; echo "== $1 ($(date +%H:%M:%S))"; }

train() {  # MODEL
    local log=$work/$1.log
    bash "$root/examples/quickstart/train.sh" "$1" "$work" 2>&1 | tee -a "$log" |
        grep --line-buffered -oE "epoch [0-9]+:.*num_updates=[0-9]+|valid on .*" |
        sed -u "s/, ppl=.*num_updates/, num_updates/; s/^/$1: /" || true
    [ -e "$work/$1/done" ] || { tail -n 20 "$log" >&2; echo "quickstart.sh: training $1 failed" >&2; exit 1; }
}

step "data"
bash "$root/examples/quickstart/prepare.sh" "$work"
if [ ! -e "$work/ar/done" ]; then
    step "training ar; the whole log is in $work/ar.log"
    train ar
fi
read -r -a parallel <<< "$(tr , '\n' <<< "$models" | grep -vx ar | tr '\n' ' ')"
if [ ${#parallel[@]} -gt 0 ]; then
    if [ ! -e "$work/kd.done" ]; then
        step "distilled data"
        bash "$root/examples/quickstart/distill.sh" "$work"
    fi
    step "training ${parallel[*]}; the whole logs are in $work/MODEL.log"
    cores=$(nproc 2> /dev/null || sysctl -n hw.ncpu)
    jobs=1
    # Two at a time on half of the cores each: models this small gain little from more threads.
    if [ "${DEVICE---cpu}" = --cpu ] && [ "$cores" -gt 1 ] && [ ${#parallel[@]} -gt 1 ]; then jobs=2; fi
    export root work
    export -f train
    printf '%s\n' "${parallel[@]}" |
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / jobs))} xargs -P $jobs -I{} bash -euo pipefail -c 'train {}'
fi
step "decoding and comparing"
bash "$root/examples/quickstart/generate.sh" "$models" "$work"
