#!/usr/bin/env bash
# PyTorch 2.13.0 with onnxscript 0.7.2: an exported ONNX file holds lines of the program it was made from, with their paths.
#
# torch.onnx.export(dynamo=True) writes a stack trace into the metadata of every node: the path of every file on the machine of the
# export, the number and the text of the line. One expects the weights and the graph of a model, and publishes with them the names
# of folders and users, and lines of code that is not public. In a small model it is most of the file. There is no option against it.
# What helps: ONNXProgram.save after node.metadata_props.clear() for every node of ONNXProgram.model.graph.all_nodes().
#
# Output seen (Linux, x86-64, Python 3.11):
#   as exported: the line is in the file, its path is in the file
#   without metadata: the line is not in the file, its path is not in the file
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 onnx==1.23.1 onnxscript==0.7.2
cat >"$folder/private_module.py" <<'PYTHON'
import torch


class Model(torch.nn.Module):
    def forward(self, x):
        return x + 41.5 * x.sigmoid()  # nobody should read this
PYTHON
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import pathlib

import torch
from private_module import Model

program = torch.onnx.export(Model(), (torch.ones(3),), dynamo=True, verbose=False)
path = pathlib.Path("model.onnx")
found = []
for words in ("as exported", "without metadata"):
    program.save(path)
    text = path.read_bytes()
    found.append((b"nobody should read this" in text, str(path.resolve().parent).encode() in text))
    said = ["is in the file" if there else "is not in the file" for there in found[-1]]
    print(f"{words}: the line {said[0]}, its path {said[1]}")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
assert found == [(True, True), (False, False)], found
PYTHON
