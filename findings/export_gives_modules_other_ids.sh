#!/usr/bin/env bash
# PyTorch 2.13.0: under torch.export(strict=False) the modules of a ModuleList have another id in every iteration, in a model one
# of whose modules has two names.
#
# A forward pass that tells its layers apart by identity works in PyTorch: fairseq's LayerDrop yields other layers in every
# iteration, and to know which ones were drawn one keeps their ids. Where some module is an attribute of
# two (such as an embedding that encoder and decoder share), torch.export traces with wrappers in place of all modules, and makes
# new ones in every iteration, so that "id(layer) in drawn" and "layer is first" are False there, or True by chance,
# where a wrapper got the memory of one that was freed. No error and no warning is given: the layers are missing in the
# exported program, which computes something else. So does torch.onnx.export, which calls it.
# What helps: the index of a layer, in place of its identity; and comparing what is exported with the original.
#
# Output seen (Linux, x86-64, Python 3.11):
#   eager, by index: 3 layers; by id: 3 layers
#   exported, by index: 3 layers; by id: 3 layers
#   exported, one module has two names, by index: 3 layers; by id: 0 layers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
import torch.nn as nn


class Add(nn.Module):
    def forward(self, x):
        return x + 1


class Stack(nn.Module):
    """Adds one for every layer; all three layers are drawn."""

    def __init__(self, by_id):
        super().__init__()
        self.layers, self.by_id = nn.ModuleList(Add() for _ in range(3)), by_id

    def forward(self, x):
        first = list(self.layers)  # kept, so that no id is used again
        drawn = {id(layer) for layer in first} if self.by_id else set(range(len(first)))
        for index, layer in enumerate(self.layers):
            if (id(layer) if self.by_id else index) in drawn:
                x = layer(x)
        return x


class Model(nn.Module):
    """A stack and a module that is not called, by one name or by two."""

    def __init__(self, by_id, names):
        super().__init__()
        self.stack = Stack(by_id)
        other = Add()
        for number in range(names):
            setattr(self, f"other{number}", other)

    def forward(self, x):
        return self.stack(x)


x = torch.zeros(())
found = []
for names, words in ((0, "eager"), (1, "exported"), (2, "exported, one module has two names")):
    models = [Model(by_id, names) for by_id in (False, True)]
    if names:
        models = [torch.export.export(model, (x,), strict=False).module() for model in models]
    by_index, by_id = (int(model(x)) for model in models)
    print(f"{words}, by index: {by_index} layers; by id: {by_id} layers")
    found.append((by_index, by_id))
assert found == [(3, 3), (3, 3), (3, 0)], found
PYTHON
