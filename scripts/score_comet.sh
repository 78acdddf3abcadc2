#!/usr/bin/env bash
# COMET of a translation, in an environment of its own, because unbabel-comet needs an older NumPy than the rest:
#
#     bash scripts/score_comet.sh SOURCE HYPOTHESES REFERENCE
#
# HYPOTHESES is text with one sentence per line, or the output of fairseq-generate. The first run makes .venv-comet
# (COMET_VENV) with PYTHON (python3, 3.9 to 3.12) and downloads the model, COMET_MODEL (Unbabel/wmt22-comet-da). GPUS=1 uses a GPU.
# On standard output: the score of the system. Whatever is missing ends with one line and status 2. Tested with a stub in the place
# of comet-score; COMET itself has not been run by this script yet.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${VENV:-$root/.venv}/bin
comet=${COMET_VENV:-$root/.venv-comet}
model=${COMET_MODEL:-Unbabel/wmt22-comet-da}
version=2.2.7

fail() {  # MESSAGE
    echo "score_comet.sh: $*" >&2
    exit 2
}

last_line() {  # FILE: its last line that is not blank
    grep -v '^[[:space:]]*$' "$1" | tail -n 1 | cut -c 1-300
}

[ $# = 3 ] || fail "SOURCE HYPOTHESES REFERENCE: three files, not $#"
for file; do [ -f "$file" ] || fail "no file $file"; done
[ -x "$bin/python" ] || fail "no environment $bin: run scripts/setup.sh first"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The same lines for all three: COMET also ends a line at a single carriage return.
"$bin/python" - "$folder" "$@" 2> "$folder/error" <<'PYTHON' || fail "$(last_line "$folder/error")"
import sys
from pathlib import Path

from nar_plugins.data.generated import best_hypotheses
from nar_plugins.data.lines import read_lines

folder, *paths = sys.argv[1:]
try:
    source, output, reference = map(read_lines, paths)
    hypotheses = best_hypotheses(output, paths[1])
except ValueError as error:
    sys.exit(str(error))
texts = {"source": source, "hypotheses": hypotheses, "reference": reference}
counts = [len(lines) for lines in texts.values()]
if len({*counts}) > 1 or not counts[0]:
    sys.exit(", ".join(f"{path} has {count} sentences" for path, count in zip(paths, counts)))
for name, lines in texts.items():
    text = "".join(line.replace("\r", " ") + "\n" for line in lines)
    Path(folder, name).write_bytes(text.encode("utf-8"))
PYTHON

if [ ! -x "$comet/bin/comet-score" ]; then
    { "${PYTHON:-python3}" -m venv "$comet" &&
        "$comet/bin/python" -m pip install -q --disable-pip-version-check "unbabel-comet==$version"; } \
        > "$folder/install" 2>&1 || fail "unbabel-comet $version cannot be installed: $(last_line "$folder/install")"
fi
"$comet/bin/comet-score" -s "$folder/source" -t "$folder/hypotheses" -r "$folder/reference" --model "$model" \
    --gpus "${GPUS:-0}" --only_system --quiet > "$folder/score" 2> "$folder/error" ||
    fail "comet-score $version with $model: $(last_line "$folder/error")"
echo "$(last_line "$folder/score" | sed "s|.*/hypotheses|$2|")  comet $version, $model"
