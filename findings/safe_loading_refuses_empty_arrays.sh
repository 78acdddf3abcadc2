#!/usr/bin/env bash
# PyTorch 2.13.0 with NumPy 2.4.6: a file with NumPy arrays loads with weights_only=True, until one of them is empty.
#
# torch.load(weights_only=True) refuses NumPy's arrays by default, and names what to allow: the class ndarray, dtype, the class of
# every element type, and numpy._core.multiarray._reconstruct. With these allowed, arrays load, and one believes the file format
# solved. An array of no elements, such as the metrics of an epoch without a validation, still fails, and the message names
# something that has nothing to do with NumPy: "GLOBAL bytes" (so, without its module builtins). torch.save pickles with
# protocol 2, which has no bytes: the content of an array travels as text through _codecs.encode, which PyTorch allows, but the
# empty content as a call of builtins.bytes, which it does not. The same array fails or loads by its length only.
# What helps: allow bytes, too; or save tensors, lists or numbers.
#
# Output seen (Linux, x86-64, Python 3.11):
#   3 numbers: loads
#   1 numbers: loads
#   0 numbers: UnpicklingError, GLOBAL bytes was not an allowed global
#   0 numbers, bytes allowed: loads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import io
import pickle
import re

import numpy as np
import torch

numpy_objects = [np.ndarray, np.dtype, type(np.dtype("int64")), np._core.multiarray._reconstruct]


def outcome(count, allowed=()):
    file = io.BytesIO()
    torch.save({"metric": np.arange(count)}, file)
    file.seek(0)
    try:
        with torch.serialization.safe_globals([*numpy_objects, *allowed]):
            loaded = torch.load(file, weights_only=True)["metric"]
    except pickle.UnpicklingError as error:
        return f"UnpicklingError, {re.search(r'GLOBAL .*? allowed global', str(error))[0]}"
    assert loaded.tolist() == list(range(count))
    return "loads"


refused = "UnpicklingError, GLOBAL bytes was not an allowed global"
for name, right, arguments in (
    ("3 numbers", "loads", {"count": 3}),
    ("1 numbers", "loads", {"count": 1}),
    ("0 numbers", refused, {"count": 0}),
    ("0 numbers, bytes allowed", "loads", {"count": 0, "allowed": [bytes]}),
):
    found = outcome(**arguments)
    print(f"{name}: {found}")
    assert found == right, found
PYTHON
