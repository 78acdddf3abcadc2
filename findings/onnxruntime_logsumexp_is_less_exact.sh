#!/usr/bin/env bash
# ONNX Runtime 1.30.0 on a CPU: ReduceLogSumExp is many times less exact than LogSoftmax of the same numbers.
#
# Both nodes need the same sum of exponentials, and PyTorch's exporter writes ReduceLogSumExp for torch.logsumexp. One expects the
# same value from both to a digit or two, as from PyTorch and NumPy, which sum in parts. ReduceLogSumExp loses more the longer the
# row is, and to one side where a large number comes first: every small number behind it is rounded to the large sum's last digit. A
# log-probability over a vocabulary then differs from PyTorch's in the fourth digit behind the point, and close decisions differ.
# What helps: log_softmax in the model that is exported, where a log-probability is wanted.
#
# Output seen (Linux, x86-64, Python 3.11):
#   ReduceLogSumExp: the log of the sum of 32000 numbers is wrong by 4.4e-04
#   LogSoftmax: the log of the sum of 32000 numbers is wrong by 2.5e-05
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check onnxruntime==1.30.0 onnx==1.23.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

NODES = {"ReduceLogSumExp": (["x", "last"], {"keepdims": 1}), "LogSoftmax": (["x"], {"axis": -1})}


def run(name, x):
    inputs, attributes = NODES[name]
    value, last = helper.make_tensor_value_info, numpy_helper.from_array(np.array([-1]), "last")
    node = helper.make_node(name, inputs, ["y"], **attributes)
    ends = [value("x", TensorProto.FLOAT, x.shape)], [value("y", TensorProto.FLOAT, [len(x), None])]
    graph = helper.make_graph([node], name, *ends, [last] if "last" in inputs else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].astype(np.float64)


# one number of nine tenths of the probability, 31,999 that share the rest: a model's logits after label smoothing
words = 32000
x = np.zeros((1, words), np.float32)
x[0, 0] = np.log(9.0 * (words - 1))
right = np.log(np.exp(x.astype(np.float64)).sum(-1))
found = {"ReduceLogSumExp": run("ReduceLogSumExp", x)[0, 0], "LogSoftmax": x[0, 0] - run("LogSoftmax", x)[0, 0]}
errors = {name: abs(value - right[0]) for name, value in found.items()}
for name, error in errors.items():
    print(f"{name}: the log of the sum of {words} numbers is wrong by {error:.1e}")
assert errors["ReduceLogSumExp"] > 10 * errors["LogSoftmax"], errors
PYTHON
