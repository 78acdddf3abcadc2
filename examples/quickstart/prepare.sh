#!/usr/bin/env bash
# The quickstart's data: a generated English-German corpus, SentencePiece, fairseq-preprocess.
#     bash examples/quickstart/prepare.sh [WORK]      (default: work/quickstart)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$root/work/quickstart}
bin=${VENV:-$root/.venv}/bin
if [ -e "$work/bin/test.en-de.de.idx" ]; then echo "data: $work/bin is there"; exit 0; fi

"$bin/python" "$root/examples/quickstart/corpus.py" "$work"
"$bin/python" "$root/scripts/spm.py" train --model "$work/spm" --size 2000 "$work/train.en" "$work/train.de"
for split in train valid test; do for language in en de; do
    "$bin/python" "$root/scripts/spm.py" encode --model "$work/spm" < "$work/$split.$language" > "$work/$split.sp.$language"
done; done
rm -rf "$work/bin" "$work/bin.part"
"$bin/fairseq-preprocess" --source-lang en --target-lang de --joined-dictionary \
    --trainpref "$work/train.sp" --validpref "$work/valid.sp" --testpref "$work/test.sp" \
    --destdir "$work/bin.part" > "$work/preprocess.log" 2>&1 || { tail -n 20 "$work/preprocess.log" >&2; exit 1; }
mv "$work/bin.part" "$work/bin"  # whole or not at all
