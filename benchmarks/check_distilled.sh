#!/usr/bin/env bash
# Is the output of nar-distill that of fairseq-generate, line by line? Is it the same after nar-distill was killed and started again?
#
#     bash benchmarks/check_distilled.sh DATA-BIN TEACHER WORK [generation flags, the same for both]
#
# Decodes the training split three times: by fairseq-generate, by nar-distill, and by nar-distill killed half-way and
# started again. Prints the differences; the exit status is 1 when there are any.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=${1:?DATA-BIN} teacher=${2:?TEACHER} work=${3:?WORK}
shift 3
bin=${VENV:-$root/.venv}/bin
mkdir -p "$work"
target=$(basename "$(ls "$data"/train.*-*.idx | head -n 1)" | cut -d. -f2 | cut -d- -f2)

"$bin/fairseq-generate" "$data" --user-dir "$root/nar_plugins" --task nar_translation --gen-subset train --path "$teacher" \
    "$@" > "$work/generate.out" 2> "$work/generate.err"
grep "^H-" "$work/generate.out" | sed "s/^H-//" | sort -n -k 1,1 | cut -f 3 > "$work/generate.txt"

seconds=$(date +%s)
"$bin/nar-distill" "$data" --teacher "$teacher" --out "$work/whole" "$@"
seconds=$(($(date +%s) - seconds))
setsid "$bin/nar-distill" "$data" --teacher "$teacher" --out "$work/killed" "$@" > /dev/null 2>&1 &
half=$!
sleep $((seconds / 2))
kill -KILL -- "-$half"
! ls "$work"/killed/train.*.idx > /dev/null 2>&1 || { echo "it was finished before it was killed" >&2; exit 1; }
"$bin/nar-distill" "$data" --teacher "$teacher" --out "$work/killed" "$@"

"$bin/python" - "$work" "$target" << 'PYTHON'
import sys
from glob import glob
from pathlib import Path

from fairseq.data import Dictionary, data_utils

work, target = Path(sys.argv[1]), sys.argv[2]
dictionary = Dictionary.load(str(work / "whole" / f"dict.{target}.txt"))
(stem,) = glob(str(work / "whole" / f"train.*.{target}.idx"))
distilled = data_utils.load_indexed_dataset(stem[: -len(".idx")], dictionary)
lines = (work / "generate.txt").read_text(encoding="utf-8").split("\n")[:-1]
differ = sum(dictionary.string(tokens) != line for tokens, line in zip(distilled, lines))
names = sorted(path.name for path in (work / "whole").glob("*.*"))
same = all((work / "killed" / name).read_bytes() == (work / "whole" / name).read_bytes() for name in names)
print(f"{len(lines)} lines of fairseq-generate, {len(distilled)} of nar-distill, {differ} differ; "
      f"killed and started again: {'the same bytes' if same else 'other bytes'} in {len(names)} files")
sys.exit(differ > 0 or len(lines) != len(distilled) or not same)
PYTHON
