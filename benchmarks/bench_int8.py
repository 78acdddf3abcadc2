"""Decoding types side by side in one process: one linear layer, one-pass models, and autoregressive rivals.

    python benchmarks/bench_int8.py [--batches 1,32] [--repeats 5] [--threads 1] [--only linear]

The first table is one linear layer, in microseconds a call. The second is a batch of ``nat`` (length head, and CTC on
twice the source) in float32, bfloat16 and int8, and of autoregressive Transformers of 6+6 and of 12+1 layers with
fairseq's search and with CTranslate2 (greedy, float32 and int8; where the package is installed: the extra ``ct2``).
Random weights, 512/1024, a vocabulary of 10,000, newstest2014's lengths, which are forced; of CTranslate2 and fairseq
the longest of each batch. The systems take turns; printed are medians with quartiles, and the ratio of the fastest
CTranslate2 row's median to the row's. CPUs only.
"""

import argparse
import logging
import statistics
import time
from types import SimpleNamespace
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from bench_against_stock import build, task_of
from bench_one_pass import SENTENCES, autoregressive, make_batches, newstest2014

import nar_plugins  # noqa: F401
from nar_plugins.generators.canvas.one_pass import OnePassConfig, OnePassGenerator
from nar_plugins.generators.options import generation_options
from nar_plugins.measure.ctranslate import CTranslate2
from nar_plugins.modules.fast.int8 import quantise
from nar_plugins.modules.fast.linear import product

SHAPES = ((512, 512), (512, 2048), (2048, 512), (512, 10000))  # inputs, outputs
ROWS = (28, 280)
DTYPES = ("float32", "bfloat16", "int8")
DEEP = ("--encoder-layers=12", "--decoder-layers=1")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,32", help="batch sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--words", type=int, default=10000)
    parser.add_argument("--only", choices=["linear", "models"], help="one of the two tables")
    args = parser.parse_args()
    args.device = "cpu"
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    if args.only != "models":
        linear_table(args)
    if args.only != "linear":
        model_table(args)


def linear_table(args) -> None:
    names = ("PyTorch", "float32", "autocast bf16", "bfloat16", "int8", "its quantisation")
    print(f"\n{'microseconds a call':24}" + "".join(f"{name:>24}" for name in names))
    for inputs, outputs in SHAPES:
        torch.manual_seed(1)
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            calls = [
                lambda: F.linear(x, weight, bias),
                *(bound(product(weight, bias, dtype), x) for dtype in (torch.float32, torch.bfloat16, torch.int8)),
                lambda: quantise(x),
            ]
            calls.insert(2, lambda: F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
            number = max(1, (1 << 30) // (8 * rows * inputs * outputs))
            with torch.inference_mode():
                seconds = in_turn([many(call, number) for call in calls], 2 * args.repeats)
            cells = "".join(f"{spread([s / number * 1e6 for s in each], 0):>24}" for each in seconds)
            print(f"{f'{inputs} x {outputs}, {rows} rows':24}{cells}", flush=True)


def bound(call: Callable, x) -> Callable:
    return lambda: call(x)


def many(call: Callable, number: int) -> Callable:
    """Several calls, because one is too short for the clock."""

    def repeated():
        for _ in range(number):
            call()

    return repeated


def model_table(args) -> None:
    task = task_of(args.words)
    systems: Dict[str, Callable] = {}
    for name, flags in (("NAT", ("--source-copy", "uniform")), ("CTC x 2", ("--ctc",))):
        model = build("nat", task, *flags).eval()
        for dtype in DTYPES:
            systems[f"{name}, {dtype}"] = one_pass(model, task, dtype)
    for name, flags in (("6-6", ()), ("12-1", DEEP)):
        model = build("transformer", task, *flags).eval()
        systems[f"fairseq greedy {name}"] = autoregressive(model, task.target_dictionary, 1)
        for dtype in ("float32", "int8"):
            try:
                system = CTranslate2(model, task.source_dictionary, task.target_dictionary, dtype, args.threads)
            except ValueError as error:
                print(f"no CTranslate2 rows: {error}")
                break
            systems[f"CTranslate2 {name}, {dtype}"] = greedy(system)
    for size in map(int, args.batches.split(",")):
        batches = make_batches(newstest2014(), size, SENTENCES.get(size, 4 * size), args)
        jobs = [lambda system=system: [system(batch) for batch in batches] for system in systems.values()]
        seconds = in_turn(jobs, args.repeats)
        rivals = [statistics.median(each) for name, each in zip(systems, seconds) if name.startswith("CTranslate2")]
        print(f"\n{f'batch {size}':28}{'ms a batch':>28}{'x the best CTranslate2':>26}")
        for name, each in zip(systems, seconds):
            ratio = f"{min(rivals) / statistics.median(each):.2f}" if rivals else "-"
            print(f"{name:28}{spread([s / len(batches) * 1000 for s in each], 1):>28}{ratio:>26}", flush=True)


def one_pass(model, task, dtype: str) -> Callable:
    """Our generator, with the gold lengths where lengths are predicted."""
    config = OnePassConfig(gold_length=model.predicts == "lengths", decode_dtype=dtype)
    options = generation_options(SimpleNamespace())
    loop = OnePassGenerator([model], task.target_dictionary, config, options, task.mask_index)
    return lambda sample: loop.generate([model], sample)


def greedy(system: CTranslate2) -> Callable:
    """CTranslate2's greedy search, forced to the width of the sources."""

    def decode(sample):
        sources = sample["net_input"]["src_tokens"]
        length = sources.size(1) - 1
        return system.translate(sources, min_decoding_length=length, max_decoding_length=length)

    return decode


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
