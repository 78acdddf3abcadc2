#!/usr/bin/env bash
# Run the tests, after setting up what they need: scripts/test.sh [pytest's arguments]
# Without arguments all of them run, in two processes of one thread each: the models of the tests are too small to make use
# of more. A file's tests stay together, because they share what they train.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
VENV=$(cd "${VENV:-$root/.venv}" && pwd)  # before the cd: a relative VENV starts where the user is
cd "$root"
if [ $# -eq 0 ]; then
    export OMP_NUM_THREADS=1
    # as examples/lib.sh: freed memory is kept for the next tensor
    export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-100000000000}
    # the long trainings first, so that the two processes end together
    set -- tests/system tests/commands tests/parity tests/unit -n 2 --dist loadfile --no-loadscope-reorder --durations=15
fi
exec "$VENV/bin/python" -m pytest "$@"
