#!/usr/bin/env bash
# PyTorch 2.13.0: activation checkpointing restores autocast and the random state, but not the choice of the attention kernel.
#
# torch.utils.checkpoint runs the forward pass a second time in the backward pass. It does so under the autocast settings of
# the first time, and with its random numbers, so one expects it to do the same for torch.nn.attention.sdpa_kernel. It does not:
# the second run has whichever kernels are allowed when backward() is called.
#   use_reentrant=False (recommended): "CheckpointError: ... Recomputed values for the following tensors have different
#     metadata", which names shapes, not kernels. On a CPU it needs no more than sdpa_kernel(MATH) around the forward pass alone.
#   use_reentrant=True: no error; the gradients are those of another kernel than the one that was asked for.
# What helps: enter sdpa_kernel inside the checkpointed function, or give checkpoint(..., context_fn=...) the same context twice.
#
# Output seen (Linux, x86-64 CPU, Python 3.11):
#   flash allowed, first run and second: [False, True]
#   autocast, first run and second: [True, True]
#   use_reentrant=False: CheckpointError: torch.utils.checkpoint: Recomputed values for the following tensors have different metadata than during the forward pass.
#   use_reentrant=True: no error
#   use_reentrant=False, context_fn: no error
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

x = torch.randn(2, 4, 16, 8, requires_grad=True)
flash, autocast = [], []


def attention(x):
    flash.append(torch.backends.cuda.flash_sdp_enabled())
    autocast.append(torch.is_autocast_enabled("cpu"))
    return F.scaled_dot_product_attention(x, x, x).sin()


def outcome(around=nullcontext, **options):
    flash.clear(), autocast.clear()
    try:
        with sdpa_kernel(SDPBackend.MATH), around():
            y = checkpoint(attention, x, **options).float().sum()
        y.backward()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "no error"


outcome(use_reentrant=True)
print("flash allowed, first run and second:", flash)
assert flash == [False, True]
outcome(lambda: torch.autocast("cpu", torch.bfloat16), use_reentrant=True)
print("autocast, first run and second:", autocast)
assert autocast == [True, True]
found = outcome(use_reentrant=False)
print("use_reentrant=False:", found)
assert found.startswith("CheckpointError") and "different metadata" in found
found = outcome(use_reentrant=True)
print("use_reentrant=True:", found)
assert found == "no error"
found = outcome(use_reentrant=False, context_fn=lambda: (nullcontext(), sdpa_kernel(SDPBackend.MATH)))
print("use_reentrant=False, context_fn:", found)
assert found == "no error"
PYTHON
