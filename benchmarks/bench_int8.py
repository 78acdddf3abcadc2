"""A linear layer in the decoding types, side by side in one process, in microseconds a call.

    python benchmarks/bench_int8.py [--repeats 5] [--threads 1] [--least]

The layers take turns; printed are medians with quartiles, and with ``--least`` the shortest times, on a machine that
does other work too. ``int8`` is the form that is chosen here, named at the end of the line; ``other int8`` is that of
small weights (in rows), without VNNI that of tables (in columns). Both give the same numbers. CPUs only. Whole models:
``bench_rivals.py``.
"""

import argparse
import statistics
import time
from typing import Callable, List

import torch
import torch.nn.functional as F

from nar_plugins.modules.fast.forms import pack
from nar_plugins.modules.fast.int8 import adds_in_16_bits, int8_product, quantise, quantise_weight
from nar_plugins.modules.fast.linear import product

SHAPES = ((512, 512), (512, 1536), (512, 2048), (2048, 512), (512, 10000))  # inputs, outputs
ROWS = (28, 280)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--least", action="store_true", help="the shortest times, not medians")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    linear_table(args)


def linear_table(args) -> None:
    names = ["PyTorch", "float32", "autocast bf16", "bfloat16", "int8", "other int8", "its quantisation"]
    wide = 10 if args.least else 24
    print(f"\n{'microseconds a call':24}" + "".join(f"{name:>{max(wide, len(name) + 2)}}" for name in names))
    for inputs, outputs in SHAPES:
        torch.manual_seed(1)
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        for rows in ROWS:
            x, quantised = torch.randn(rows, inputs), quantise_weight(weight)
            other = pack(quantised, looked_up=True) if adds_in_16_bits() else quantised
            calls = [
                lambda: F.linear(x, weight, bias),
                *(bound(product(weight, bias, dtype), x) for dtype in (torch.float32, torch.bfloat16, torch.int8)),
                bound(int8_product(other, bias), x),
                lambda: quantise(x),
            ]
            calls.insert(2, lambda: F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
            number = max(1, (1 << 30) // (8 * rows * inputs * outputs))
            with torch.inference_mode():
                seconds = in_turn([many(call, number) for call in calls], 2 * args.repeats)
            cells = ""
            for name, each in zip(names, seconds):
                micro = [s / number * 1e6 for s in each]
                cell = f"{min(micro):.0f}" if args.least else spread(micro, 0)
                cells += f"{cell:>{max(wide, len(name) + 2)}}"
            form = type(pack(quantised)).__name__
            print(f"{f'{inputs} x {outputs}, {rows} rows':24}{cells}  int8: {form}", flush=True)


def bound(call: Callable, x) -> Callable:
    return lambda: call(x)


def many(call: Callable, number: int) -> Callable:
    """Several calls, because one is too short for the clock."""

    def repeated():
        for _ in range(number):
            call()

    return repeated


def in_turn(jobs: List[Callable], repeats: int) -> List[List[float]]:
    """Seconds of every job in every repeat; the first round is the warm-up."""
    times = [[] for _ in jobs]
    for repeat in range(repeats + 1):
        for job, seconds in zip(jobs, times):
            start = time.perf_counter()
            job()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return times


def spread(values: List[float], digits: int) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
