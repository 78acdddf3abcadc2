#!/usr/bin/env bash
# fairseq 0.12.3 (the prebuilt ve-fairseq; fairseq-fixed 0.12.3.1 has the same code): fairseq-score gives one line of a hundred the
# BLEU of all hundred.
#
# One expects a scorer to refuse a system output with fewer lines than the reference, as sacreBLEU does, or to count what is missing
# against it. fairseq-score reads both files side by side until the shorter one ends and leaves the rest out of both counts, so that
# the brevity penalty sees nothing either. A generation that was killed, or one shard of several, scores like a finished one; a
# reference that was cut does, too. It warns of nothing and exits with 0. Only reflen, at the end of its line, tells.
# What helps: compare `wc -l` of both before, or score with sacreBLEU.
#
# Output seen (Linux, x86-64 CPU, Python 3.11, PyTorch 2.13.0), of a reference of 100 lines of ten tokens each, as the system:
#   100 lines: BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=1000, reflen=1000)
#   50 lines:  BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=500, reflen=500)
#   1 lines:   BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=10, reflen=10)
#   sacreBLEU 2.6.0, 50 lines: exit status 1, "System and reference streams have different lengths."
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: --no-deps ve-fairseq==0.12.3
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 torchaudio==2.11.0 numpy==2.4.6 hydra-core==1.3.2 \
    omegaconf==2.3.0 sacrebleu==2.6.0 regex==2026.11.15 scikit-learn==1.9.1 bitarray==3.12.3 tqdm cffi cython packaging
cd "$folder"
for line in $(seq 100); do  # ten different tokens a line, other ones in every line
    for token in $(seq 10); do printf 'w%d ' $((line * 10 + token)); done
    echo
done | sed 's/ $//' > reference
seen=0
for lines in 100 50 1; do
    head -n "$lines" reference > system
    score=$("$folder/env/bin/fairseq-score" --sys system --ref reference 2> /dev/null | tail -n 1)
    echo "$lines lines: $score"
    [ "$score" = "BLEU4 = 100.00, 100.0/100.0/100.0/100.0 (BP=1.000, ratio=1.000, syslen=$((lines * 10)), reflen=$((lines * 10)))" ] || seen=1
done
head -n 50 reference > system
status=0
"$folder/env/bin/sacrebleu" reference -i system > out 2>&1 || status=$?
echo "sacreBLEU, 50 lines: exit status $status, $(grep -o 'System and reference streams have different lengths.' out | head -n 1)"
[ "$status" = 1 ] && [ "$seen" = 0 ] || { echo "this is another behaviour than the one described" >&2; exit 1; }
