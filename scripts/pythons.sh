#!/usr/bin/env bash
# For each named Python: an environment of its own by scripts/setup.sh, then tests in it, and one line of result.
#
#     bash scripts/pythons.sh python3.9 python3.13               # compiled: ten minutes each on two free cores
#     bash scripts/pythons.sh python3.12=prebuilt                # FAIRSEQ=prebuilt
#     TESTS="tests/parity tests/system" bash scripts/pythons.sh python3.10
#
# TESTS are pytest's arguments: without it, the two commands of every user (a recipe in miniature from raw text to scores, a
# built wheel), bad input, parity with the releases, models that must learn, and what depends on Python, fairseq or an
# optional package. WORK (work/pythons) keeps the environments, 1.5 to 6 GB each, and the logs. The status is 1 if one of
# them failed.
# What was run of it, and when: docs/install.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=${WORK:-$root/work/pythons}
case $work in /*) ;; *) work=$PWD/$work ;; esac
tests=${TESTS:-tests/commands/test_recipes.py tests/commands/test_wheel.py tests/commands/test_setup.py
    tests/commands/test_bad_input.py tests/parity tests/system/test_learning.py tests/system/test_nat_learning.py
    tests/unit/test_compat.py tests/unit/test_compat_files.py tests/unit/test_export.py tests/unit/test_flags.py
    tests/unit/test_hub.py tests/unit/test_pack.py tests/unit/test_safe_reader.py tests/unit/test_print_options.py}
[ $# -gt 0 ] || { echo "pythons.sh: name one Python or more, such as python3.9 or python3.12=prebuilt" >&2; exit 2; }
for named; do
    case $named in *=compiled | *=prebuilt) ;; *=*) echo "pythons.sh: $named: =compiled or =prebuilt" >&2; exit 2 ;; esac
    command -v "${named%%=*}" >/dev/null || { echo "pythons.sh: there is no '${named%%=*}'" >&2; exit 2; }
    # pyenv puts a command on the PATH for each version that it has, and it fails for those that are not chosen
    "${named%%=*}" -c '' 2>/dev/null || { echo "pythons.sh: '${named%%=*}' does not run: name another Python" >&2; exit 2; }
done

versions='import sys
from importlib.metadata import distributions
found = {d.metadata["Name"]: d.version for d in distributions()}
names = [name for name in ("fairseq", "fairseq-fixed", "ve-fairseq") if name in found]
print("%d.%d.%d" % sys.version_info[:3], *(f"{name} {found[name]}" for name in names), "torch " + found["torch"], sep=" | ")'

summary() {  # LOG: pytest's line of result, behind which the workers of -n may write; where there is none, the last line
    grep -E " in [0-9.]+s" "$1" | tail -n 1 | grep . || tail -n 1 "$1"
}

# The tests of a Python that has no cores to share with another one's: one after the other.
failed=0
mkdir -p "$work"
cd "$root"
for named; do
    python=${named%%=*} kind=compiled
    case $named in *=*) kind=${named#*=} ;; esac
    name=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$kind
    export VENV=$work/$name
    log=$work/$name.log
    start=$SECONDS
    if ! PYTHON=$python FAIRSEQ=$kind scripts/setup.sh >"$log" 2>&1; then
        echo "$name | set-up failed: $(tail -n 1 "$log") | $log"
        failed=1
        continue
    fi
    made=$((SECONDS - start))
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$VENV/bin/python" -m pytest -q $tests >>"$log" 2>&1 || failed=1
    echo "$("$VENV/bin/python" -c "$versions") | set-up $made s | $(summary "$log") | $(date +%F) | $log"
done
exit $failed
