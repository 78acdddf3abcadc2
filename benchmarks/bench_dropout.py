"""Dropout with its gradient on a CPU: PyTorch's, which fairseq calls, and ``modules/dropout.py``.

    python benchmarks/bench_dropout.py [--threads 1] [--repeats 50]

The two take turns; printed are the shortest times of a call and of its gradient, for a batch of 50 canvases of 50
positions and 128 dimensions. The machine may do other work.
"""

import argparse
import time
from typing import Callable

import torch
from fairseq.modules import FairseqDropout

from nar_plugins.modules.dropout import FastDropout

SHAPE = (50, 50, 128)


def microseconds(dropout: Callable, x: torch.Tensor, gradient: torch.Tensor) -> float:
    """One call and its backward pass."""
    start = time.perf_counter()
    dropout(x).backward(gradient)
    return (time.perf_counter() - start) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(SHAPE).to(dtype).requires_grad_()
        gradient = torch.ones_like(x)
        theirs, ours = FairseqDropout(0.1), FastDropout(0.1)
        times = [(microseconds(theirs, x, gradient), microseconds(ours, x, gradient)) for _ in range(args.repeats)]
        slow, fast = (min(column) for column in zip(*times))
        print(f"{str(dtype)[6:]}: PyTorch's {slow:,.0f} us, ours {fast:,.0f} us, {fast / slow:.2f} times")


if __name__ == "__main__":
    main()
