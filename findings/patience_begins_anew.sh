#!/usr/bin/env bash
# fairseq 0.12.3 (the prebuilt ve-fairseq; fairseq-fixed 0.12.3.1 has the same code): a training that is started again has forgotten
# how long --patience has waited, and what for.
#
# One expects a resumed training to stop where an uninterrupted one does: the checkpoint holds weights, optimizer, position in the
# data and the best validation loss, and --save-dir's checkpoint_best.pt goes on from that one. The count of --patience and its own
# copy of the best loss are attributes of a Python function, which no checkpoint has. After a restart the next validation is the
# best one, however bad it is. Where a queue's time limit or a preempted machine ends the job more often than --patience runs out,
# it never runs out; and a training that it has ended, started again by a script, trains for --patience validations more.
# What helps: a time limit that holds several times --patience, or --max-update beside it.
#
# Output seen (Linux, x86-64 CPU, Python 3.11, PyTorch 2.13.0), --patience 3, a learning rate of nearly nothing, one validation an
# epoch, all with the same loss:
#   not interrupted:             epochs 1 2 3 4, then "early stop since valid performance hasn't improved for last 3 runs"
#   stopped after every second:  epochs 1 2 | 3 4 | 5 6 | 7 8
#   then to its end:             epochs 9 10 11 12
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: --no-deps ve-fairseq==0.12.3
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 torchaudio==2.11.0 numpy==2.4.6 hydra-core==1.3.2 \
    omegaconf==2.3.0 sacrebleu==2.6.0 regex==2026.11.15 scikit-learn==1.9.1 bitarray==3.12.3 tqdm cffi cython packaging
cd "$folder"
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 # fairseq 0.12.3 is older than PyTorch's safe loader; these are its own checkpoints
for side in en de; do for split in train valid; do
    for line in $(seq 16); do echo "w$((line % 5)) w$((line % 3)) w$((line % 7))"; done > "$split.$side"
done; done
env/bin/fairseq-preprocess -s en -t de --trainpref train --validpref valid --joined-dictionary --destdir bin > preprocess.log 2>&1

epochs() {  # FOLDER LAST: train up to epoch LAST; the epochs that were validated
    env/bin/fairseq-train bin --arch transformer_tiny --criterion cross_entropy --optimizer adam --lr 1e-30 --batch-size 8 --cpu \
        --patience 3 --max-epoch "$2" --save-dir "$1" --no-epoch-checkpoints --log-format simple > log 2>&1 || { tail -n 5 log >&2; exit 1; }
    grep -o 'valid | epoch [0-9]*' log | sed 's,.*epoch 0*,,' | tr '\n' ' ' | sed 's, $,,'
}
whole=$(epochs whole 20)
echo "not interrupted:             epochs $whole, then \"$(grep -o 'early stop since .*' log)\""
parts=$(for last in 2 4 6 8; do epochs parts $last; echo -n " | "; done)
echo "stopped after every second:  epochs ${parts% | }"
rest=$(epochs parts 20)
echo "then to its end:             epochs $rest"
[ "$whole" = "1 2 3 4" ] && [ "${parts% | }" = "1 2 | 3 4 | 5 6 | 7 8" ] && [ "$rest" = "9 10 11 12" ] ||
    { echo "this is another behaviour than the one described" >&2; exit 1; }
