#!/usr/bin/env bash
# PyTorch 2.13.0, CPUs: the same numbers, of the same shape, at another address give other bits, in a batched matrix
# product and in attention, which is made of such products.
#
# That a row's result depends on how many rows are computed with it is known. With the shapes equal, one thread and no
# random numbers, one would expect the same bits from the same numbers. But the library under torch.bmm and
# scaled_dot_product_attention chooses its loop by where a matrix begins: of a small one (here 5 rows of 64) that does
# not start at a multiple of 64 bytes some sums are made in another order. A part of a larger tensor seldom does, so a
# sentence that is cut out of a packed batch differs from the same sentence alone, and a rounding after it (to int8, for
# example) makes a step of that last bit. Larger ones (28 rows) had the same bits at every address, and so had
# torch.nn.functional.linear.
#
# Output seen (Linux, x86-64, AMD with AVX-512, Python 3.11):
#   5 rows: of 15 other addresses 12 give other bits in bmm, 12 in attention, 0 in linear
#   28 rows: of 15 other addresses 0 give other bits in bmm, 0 in attention, 0 in linear
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
LINE = 16  # float32 numbers in 64 bytes


def moved(x, offset):
    """The numbers of x, from so many float32 numbers after a multiple of 64 bytes on."""
    memory = torch.empty(x.numel() + 2 * LINE)
    start = (-memory.data_ptr() // 4) % LINE + offset
    place = memory[start : start + x.numel()].view(x.shape)
    assert place.data_ptr() % (4 * LINE) == 4 * offset
    return place.copy_(x)


def others(compute, *tensors):
    """How many of the other places give other bits."""
    first = compute(*(moved(x, 0) for x in tensors))
    assert torch.equal(first, compute(*(moved(x, 0) for x in tensors))), "the same address gives the same bits"
    return sum(not torch.equal(first, compute(*(moved(x, offset) for x in tensors))) for offset in range(1, LINE))


torch.manual_seed(0)
found = {}
for rows in (5, 28):
    q, k, v = torch.randn(3, 2, rows, 64)
    found[rows] = [
        others(lambda a, b: torch.bmm(a, b.transpose(1, 2)), q, k),
        others(lambda a, b, c: F.scaled_dot_product_attention(a[None], b[None], c[None]), q, k, v),
        others(F.linear, q[0], torch.randn(64, 64)),
    ]
    counts = "{} give other bits in bmm, {} in attention, {} in linear".format(*found[rows])
    print(f"{rows} rows: of {LINE - 1} other addresses {counts}")
assert found[5][0] and found[5][1], "the same bits at every address: this has changed"
PYTHON
