#!/usr/bin/env bash
# A translation recipe from raw text to scores: bash examples/run.sh RECIPE [MODELS] [WORK] [--dry-run]
#     MINI=1 bash examples/run.sh wmt14_en_de                # does everything run? minutes, no download
#     DEVICE="" GPUS=8 bash examples/run.sh wmt16_en_ro "ar kd-cmlm"
# MODELS are those of RECIPE/train.sh, in the order in which they start from one another. A second run goes on where the first
# one stopped.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
name=${1:-} models=${2:-ar ar-12-1 cmlm kd-ar-12-1 kd-nat kd-nat-ft kd-glat kd-ctc dag kd-cmlm kd-frozen kd-block kd-bang-ar kd-bang}
recipes=$(cd "$root/examples" && grep -ls "/recipe.sh" */distill.sh | sed 's,/.*,,')
grep -qx "$name" <<< "$recipes" || fail "no recipe '$name':" $recipes
step() {  # SCRIPT [ARGUMENT ...]
    echo "# $name/$1"
    bash "$root/examples/$name/$1" "${@:2}" ${dry:+--dry-run}
}

step prepare.sh "" "${3:-}"
for model in $models; do
    case $model in kd-*) if [ -z "${distilled:-}" ]; then step distill.sh "${3:-}"; distilled=yes; fi ;; esac
    step train.sh "$model" "" "${3:-}"
done
MODELS=$models step generate.sh "${3:-}"
