#!/usr/bin/env bash
# PyTorch 2.13.0, x86 CPUs without float16 arithmetic: a product in float16 takes several times as long as in float32, and
# with the same weights by torch.ops.quantized.linear_dynamic_fp16 less than in float32: a sixth for few rows of a large one.
#
# One would expect half precision to be slow on such a processor, as torch.autocast("cpu", torch.float16) is, and an
# operator with "quantized" and "dynamic" in its name to quantise its input in every call. It does neither: FBGEMM reads
# the weights in float16, casts a block of them while it multiplies, and adds in float32; input and output are float32. So
# it reads half of the memory, and its kernels are also faster for tens of rows than those that PyTorch calls for float32.
#
# Seen are processor times of one thread, the least of some repetitions, and the largest deviation from float32's product
# with the rounded weights.
# Output seen (Linux, x86-64, AMD of the third EPYC generation, Python 3.11), microseconds a product:
#   512 x 2048, 4 rows: float32 305, float16 734, float16 weights 129; deviation 8e-05
#   512 x 2048, 28 rows: float32 846, float16 5172, float16 weights 687; deviation 8e-05
#   2048 x 512, 28 rows: float32 901, float16 4420, float16 weights 791; deviation 3e-04
#   512 x 10000, 4 rows: float32 3799, float16 3965, float16 weights 609; deviation 1e-04
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import time
from pathlib import Path

import torch

cpuinfo = Path("/proc/cpuinfo")
flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
if "avx2" not in flags or "avx512_fp16" in flags:
    print("nothing to show here: this processor has float16 arithmetic, or is no x86 with AVX2")
    raise SystemExit
torch.set_num_threads(1)


def microseconds(call):
    times = []
    for _ in range(40):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return min(times) / 1000


def compared(inputs, outputs, rows):
    torch.manual_seed(1)
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    half, short = weight.half(), x.half()
    packed, kernel = torch.ops.quantized.linear_prepack_fp16(weight, None), torch.ops.quantized.linear_dynamic_fp16
    calls = {
        "float32": lambda: torch.nn.functional.linear(x, weight),
        "float16": lambda: torch.nn.functional.linear(short, half),
        "float16 weights": lambda: kernel(x, packed),
    }
    apart = (kernel(x, packed) - torch.nn.functional.linear(x, half.float())).abs().max()
    assert apart < 1e-3, "inputs and sums are float32"
    times = {name: microseconds(call) for name, call in calls.items()}
    said = ", ".join(f"{name} {taken:.0f}" for name, taken in times.items())
    print(f"{inputs} x {outputs}, {rows} rows: {said}; deviation {apart:.0e}")
    return times["float16"] / times["float32"], times["float16 weights"] / times["float32"]


for shape in ((512, 2048, 4), (512, 2048, 28), (2048, 512, 28), (512, 10000, 4)):
    short, weights = compared(*shape)
    assert weights < 0.95, "float16 weights are faster than float32"
    assert shape[2] < 28 or short > 2, "float16 takes several times as long"
PYTHON
