#!/usr/bin/env bash
# PyTorch 2.13.0, CPUs without VNNI: torch._int_mm takes twenty times as long as the same product in float32.
#
# Weights of a quarter of the size should not be slower to multiply, and oneDNN, which torch._int_mm calls, has kernels
# for int8 and AVX2: a weight that was packed for it (torch.ops.onednn.qlinear_pointwise) multiplies the same numbers
# in less time than float32. But for torch._int_mm's plain matrices it takes its reference loop, number by number.
# Nothing is logged, and the numbers are right, so an int8 model that was made on a newer machine just decodes many
# times slower on a laptop or a rented core of some years ago.
#
# ONEDNN_MAX_CPU_ISA lets a newer processor show it, too. Seen are processor times of one thread, the least of some
# repetitions; the whole numbers of both int8 products are equal.
# Output seen (Linux, x86-64, AMD of the third EPYC generation, Python 3.11), microseconds a product:
#   512 x 512, 28 rows: float32 258, packed int8 193, torch._int_mm 4838
#   512 x 2048, 28 rows: float32 984, packed int8 499, torch._int_mm 20166
#   2048 x 512, 28 rows: float32 1136, packed int8 600, torch._int_mm 19579
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/env/bin/python" - <<'PYTHON'
import time

import torch

torch.set_num_threads(1)


def microseconds(call):
    times = []
    for _ in range(15):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return min(times) / 1000


def compared(inputs, outputs, rows):
    torch.manual_seed(1)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    numbers = torch.randint(0, 128, (rows, inputs), dtype=torch.uint8)  # of eight bits two products overflow 16
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scaling = torch.ones(outputs), torch.zeros(1, dtype=torch.int64)
    kernel, x, floats = torch.ops.onednn.qlinear_pointwise, numbers.float(), weight.float()
    calls = {
        "float32": lambda: torch.nn.functional.linear(x, floats),
        "packed int8": lambda: kernel(numbers, 1.0, 0, packed, *scaling, None, 1.0, 0, torch.float32, "none", [], ""),
        "torch._int_mm": lambda: torch._int_mm(numbers, weight.t()),
    }
    assert torch.equal(calls["packed int8"]().long(), calls["torch._int_mm"]().long()), "the same whole numbers"
    times = {name: microseconds(call) for name, call in calls.items()}
    print(f"{inputs} x {outputs}, {rows} rows: " + ", ".join(f"{name} {taken:.0f}" for name, taken in times.items()))
    return times["torch._int_mm"] / times["float32"], times["packed int8"] / times["float32"]


for shape in ((512, 512, 28), (512, 2048, 28), (2048, 512, 28)):
    plain, packed = compared(*shape)
    assert plain > 10, "torch._int_mm takes many times as long as float32"
    assert packed < 3, "oneDNN's kernel for packed weights does not"
PYTHON
