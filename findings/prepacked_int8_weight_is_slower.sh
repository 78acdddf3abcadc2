#!/usr/bin/env bash
# PyTorch 2.13.0, CPUs with VNNI: an int8 product with a weight that was packed for oneDNN takes four times as long for
# one row as the same product with the weight as it lies, and twice as long for eight rows of a small layer.
#
# One would pack the weights of a decoder once (torch.ops.onednn.qlinear_prepack, what quantised models call): the kernel
# then has nothing to reorder, where torch._int_mm is given a transposed view in every call. But a call of the packed
# kernel (torch.ops.onednn.qlinear_pointwise) spends some 25 us before it multiplies, several times what one row of a
# layer of 512 by 512 takes, and a decoder that says one token at a time makes dozens of them a token. Packing pays from
# tens of rows on with a large weight, a vocabulary for example.
#
# Seen are processor times of one thread, the least of many repetitions; the results are equal to the last bit.
# Output seen (Linux, x86-64, Intel with AVX512-VNNI, Python 3.11), microseconds a product:
#   512 x 512, 1 row: packed 32, as it lies 7
#   512 x 512, 8 rows: packed 41, as it lies 23
#   512 x 2048, 1 row: packed 63, as it lies 16
#   512 x 10000, 32 rows: packed 657, as it lies 777
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import time

import torch

if not torch.cpu._is_vnni_supported():
    print("nothing to show here: this processor has no VNNI")
    raise SystemExit
torch.set_num_threads(1)
ONE = torch.ones(1, dtype=torch.float32)
ZERO = torch.zeros(1, dtype=torch.int64)


def microseconds(call):
    times = []
    for _ in range(200):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return min(times) / 1000


def compared(inputs, outputs, rows):
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    x = torch.randint(0, 128, (rows, inputs), dtype=torch.uint8)
    scales = ONE.repeat(outputs)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    kernel = torch.ops.onednn.qlinear_pointwise
    calls = (
        lambda: kernel(x, 1.0, 0, packed, scales, ZERO, None, 1.0, 0, torch.float32, "none", [], ""),
        lambda: torch._int_mm(x, weight.t()),
    )
    exact = x.long() @ weight.long().t()
    assert all(torch.equal(call().long(), exact) for call in calls), "the same whole numbers"
    times = [microseconds(call) for call in calls]
    print(f"{inputs} x {outputs}, {rows} row{'s' * (rows > 1)}: packed {times[0]:.0f}, as it lies {times[1]:.0f}")
    return times[0] / times[1]


ratios = [compared(512, 512, 1), compared(512, 512, 8), compared(512, 2048, 1), compared(512, 10000, 32)]
assert ratios[0] > 1.5 and ratios[2] > 1.2, "packed is slower for one row"
assert ratios[3] < ratios[0] / 1.5, "and gains with rows"
PYTHON
