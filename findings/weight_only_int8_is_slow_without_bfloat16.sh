#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: the product with a weight that alone is in int8 (torch._weight_int8pack_mm) takes 15 to 40
# times as long with inputs in float32 or float16 as with inputs in bfloat16, and 8 to 80 times as long as float32's product.
#
# One would quantise a decoder's weights, keep its states in float32, and read a quarter of the memory. But the kernel has
# vector instructions for bfloat16 only, also on processors that have no bfloat16 themselves; in the other types it adds
# number by number. Results are right in all of them. For one row, in bfloat16, it is faster than float32, as hoped.
#
# Seen are processor times of one thread, the least of many repetitions.
# Output seen (Linux, x86-64, Intel with AVX512-VNNI and without bfloat16, Python 3.11), microseconds a product:
#   512 x 512, 1 row: inputs in float32 304, inputs in float16 414, inputs in bfloat16 20; all in float32 38
#   512 x 512, 8 rows: inputs in float32 2488, inputs in float16 3260, inputs in bfloat16 73; all in float32 61
#   512 x 512, 32 rows: inputs in float32 9541, inputs in float16 13011, inputs in bfloat16 379; all in float32 158
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import time

import torch

torch.set_num_threads(1)
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def microseconds(call):
    times = []
    for _ in range(40):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return min(times) / 1000


def compared(inputs, outputs, rows):
    torch.manual_seed(1)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scales, x = torch.rand(outputs) / 127, torch.randn(rows, inputs)
    whole = weight.float() * scales.unsqueeze(1)
    wanted = x @ whole.t()
    plain = microseconds(lambda: x @ whole.t())
    times = {}
    for dtype in TYPES:
        given = x.to(dtype), weight, scales.to(dtype)
        torch.testing.assert_close(torch._weight_int8pack_mm(*given).float(), wanted, rtol=0.02, atol=0.2)
        times[dtype] = microseconds(lambda: torch._weight_int8pack_mm(*given))
    seen = ", ".join(f"inputs in {str(dtype)[6:]} {times[dtype]:.0f}" for dtype in TYPES)
    print(f"{inputs} x {outputs}, {rows} row{'s' * (rows > 1)}: {seen}; all in float32 {plain:.0f}")
    return [times[dtype] / plain for dtype in TYPES]


for rows in (1, 8, 32):
    single, half, brain = compared(512, 512, rows)
    assert min(single, half) > 4, "slower than a product in float32"
    assert min(single, half) > 4 * brain, "slower than with bfloat16"
PYTHON
