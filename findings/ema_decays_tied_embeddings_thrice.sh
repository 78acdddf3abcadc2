#!/usr/bin/env bash
# fairseq 0.12.3 (the prebuilt ve-fairseq; fairseq-fixed 0.12.3.1 has the same code): --store-ema averages a tied table of
# embeddings three times an update.
#
# One expects the moving average of every weight w to be  ema <- d * ema + (1 - d) * w  with d = --ema-decay. fairseq goes through
# the names of state_dict() and changes each tensor in place. With --share-all-embeddings, which every WMT recipe for Transformers
# has, one tensor stands there under three names (encoder.embed_tokens, decoder.embed_tokens, decoder.output_projection), and is
# changed three times: its decay is d ** 3. With --share-decoder-input-output-embed it is d ** 2. So the largest table of the model
# follows the training three times as fast as the layers around it, and the average is not that of one moment: with d = 0.999 it
# remembers some 330 updates where the layers remember 1,000. No warning, and the EMA checkpoint loads as usual.
# What helps: no --share flags with --store-ema, or averaging checkpoints instead.
#
# Output seen (Linux, x86-64 CPU, Python 3.11, PyTorch 2.13.0), weights 1, averages 0, d = 0.9, one update:
#   not shared:                       layer 0.1000, embeddings 0.1000
#   --share-decoder-input-output-embed: layer 0.1000, embeddings 0.1900
#   --share-all-embeddings:             layer 0.1000, embeddings 0.2710
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: --no-deps ve-fairseq==0.12.3
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 torchaudio==2.11.0 numpy==2.4.6 hydra-core==1.3.2 \
    omegaconf==2.3.0 sacrebleu==2.6.0 regex==2026.11.15 scikit-learn==1.9.1 bitarray==3.12.3 tqdm cffi cython packaging
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import logging
from types import SimpleNamespace

logging.disable()
import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.ema import EMA

words = Dictionary()
for i in range(10):
    words.add_symbol(f"w{i}")
task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
config = SimpleNamespace(ema_decay=0.9, ema_start_update=0, ema_update_freq=1, ema_fp32=False, ema_seed_model=None)


def after_one_update(*flags):
    given = ["data", "--task", "translation", "--arch", "transformer_tiny", *flags]
    args = options.parse_args_and_arch(options.get_training_parser("translation"), given)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        average = EMA(model, config)  # a copy of zeros
        for weight in model.parameters():
            weight.fill_(1)
    average.step(model, updates=1)
    found = average.get_model().decoder
    return [round(float(one.flatten()[0]), 4) for one in (found.layers[0].fc1.weight, found.embed_tokens.weight[5])]


expected = {(): [0.1, 0.1], ("--share-decoder-input-output-embed",): [0.1, 0.19], ("--share-all-embeddings",): [0.1, 0.271]}
for flags, right in expected.items():
    layer, embeddings = found = after_one_update(*flags)
    print(f"{' '.join(flags) + ':' if flags else 'not shared:':36}layer {layer:.4f}, embeddings {embeddings:.4f}")
    assert found == right, found
PYTHON
