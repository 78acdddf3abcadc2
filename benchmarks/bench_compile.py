"""Decoding with ``--compile`` against decoding without it, side by side in one process.

    python benchmarks/bench_compile.py [--device cuda] [--dim 512] [--layers 6] [--models nat,cmlm] [--batches 1,32]

Random weights, feed-forward layers of twice ``--dim``, random sentences of 20 to 30 tokens, as long on both sides; CMLM
with 10 passes and five lengths. On a CPU one thread computes and the processor's time counts, so that other processes
hardly matter. Printed are the time of compiling (with that of the compilers it starts), the graphs that were made, the
medians of a batch's time, and the compiled one's ratio.
"""

import argparse
import logging
import os
import statistics
import time
from types import SimpleNamespace

import torch
from bench_against_stock import build, task_of
from torch._dynamo.utils import counters

import nar_plugins  # noqa: F401
from nar_plugins.generators.canvas.mask_predict import MaskPredictConfig, MaskPredictGenerator
from nar_plugins.generators.canvas.one_pass import OnePassConfig, OnePassGenerator
from nar_plugins.generators.options import generation_options

MODELS = {
    "nat": (OnePassGenerator, OnePassConfig, ("--source-copy", "uniform", "--length-head", "pooled"), {}),
    "cmlm": (MaskPredictGenerator, MaskPredictConfig, (), {"iterations": 10, "length_beam": 5}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="nat,cmlm")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--words", type=int, default=10000)
    parser.add_argument("--batches", default="1,32", help="batch sizes")
    parser.add_argument("--repeats", type=int, default=20, help="batches of each size, of different lengths")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    task = task_of(args.words)
    print(f"torch {torch.__version__}, {args.device}; {args.layers}+{args.layers} layers of {args.dim}")
    for name in args.models.split(","):
        generators = [loop(name, task, args, compile=compiled) for compiled in (False, True)]
        for size in map(int, args.batches.split(",")):
            batches = [batch(size, args, seed) for seed in range(args.repeats)]
            counters.clear()
            started = spent(args.device)
            for sample in batches[:3]:
                generators[1](sample)
            compiling = spent(args.device) - started
            for sample in batches[:3]:
                generators[0](sample)
            seconds = [[], []]
            for sample in batches:
                for generator, taken in zip(generators, seconds):
                    start = clock(args.device)
                    generator(sample)
                    taken.append(clock(args.device) - start)
            plain, compiled = map(statistics.median, seconds)
            print(
                f"{name}, batch {size}: plain {1000 * plain:.1f} ms, compiled {1000 * compiled:.1f} ms, ratio "
                f"{compiled / plain:.2f}; {counters['stats']['unique_graphs']} graphs in {compiling:.0f} s",
                flush=True,
            )


def loop(name: str, task, args, **more):
    """A generator of a model with random weights, given the lengths."""
    kind, config, flags, settings = MODELS[name]
    sizes = []
    for side in ("encoder", "decoder"):
        sizes += [
            f"--{side}-embed-dim={args.dim}",
            f"--{side}-ffn-embed-dim={2 * args.dim}",
            f"--{side}-layers={args.layers}",
        ]
    model = build(name, task, *sizes, *flags).to(args.device).eval()
    config = config(gold_length=True, **settings, **more)
    made = kind([model], task.target_dictionary, config, generation_options(SimpleNamespace()), task.mask_index)
    return lambda sample: made.generate([model], sample)


def batch(size: int, args, seed: int) -> dict:
    """Random sentences of different lengths, as long on both sides."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 31, (size,), generator=random)
    tokens = torch.randint(4, args.words - 2, (size, int(lengths.max())), generator=random)
    places = torch.arange(tokens.size(1))
    tokens = tokens.masked_fill(places >= lengths.unsqueeze(1), 1).scatter(1, lengths.unsqueeze(1) - 1, 2)
    tokens, lengths = tokens.to(args.device), lengths.to(args.device)
    return {"net_input": {"src_tokens": tokens, "src_lengths": lengths}, "target": tokens}


def clock(device: str) -> float:
    """Seconds: of this process on a CPU, else of the world."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def spent(device: str) -> float:
    """``clock``, with the processes that have ended."""
    return sum(os.times()[:4]) if device == "cpu" else clock(device)


if __name__ == "__main__":
    main()
