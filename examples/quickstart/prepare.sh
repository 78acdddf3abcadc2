#!/usr/bin/env bash
# The quickstart's data: a generated English-German corpus, SentencePiece, fairseq-preprocess.
#     bash examples/quickstart/prepare.sh [WORK]      (default: work/quickstart)
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
work=${1:-$root/work/quickstart}
if [ -e "$work/bin/test.en-de.de.idx" ]; then echo "data: $work/bin is there"; exit 0; fi

"$bin/python" "$root/examples/quickstart/corpus.py" "$work"
learn_pieces 2000 "$work"/train.{en,de}
encode_pieces "$work"/{train,valid,test}.{en,de}
binarise en de
