#!/usr/bin/env bash
# Run the tests, after setting up what they need: scripts/test.sh [pytest's arguments]
# Without arguments all of them run, as two pytest processes of one thread each: the models of the tests are too small to
# make use of more. The second one's report follows the first one's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
VENV=$(cd "${VENV:-$root/.venv}" && pwd)  # before the cd: a relative VENV starts where the user is
cd "$root"
if [ $# -gt 0 ]; then exec "$VENV/bin/python" -m pytest "$@"; fi

export OMP_NUM_THREADS=1
first=(tests/system/test_learning.py tests/system/test_nat_learning.py tests/system/test_resume.py
       tests/system/test_blockwise_commands.py tests/commands/test_align_command.py
       tests/commands/test_distill_command.py tests/parity)  # about half of the time
report=$(mktemp)
"$VENV/bin/python" -m pytest tests -o cache_dir=.pytest_cache/second "${first[@]/#/--ignore=}" > "$report" 2>&1 &
second=$!
trap 'kill "$second" 2>/dev/null || true; rm -f "$report"' EXIT
status=0
"$VENV/bin/python" -m pytest "${first[@]}" || status=$?
wait "$second" || status=$?
cat "$report"
exit "$status"
