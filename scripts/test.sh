#!/usr/bin/env bash
# Run the tests, after setting up what they need: scripts/test.sh [pytest's arguments]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
VENV=$(cd "${VENV:-$root/.venv}" && pwd)  # before the cd: a relative VENV starts where the user is
cd "$root"
exec "$VENV/bin/python" -m pytest tests "$@"
