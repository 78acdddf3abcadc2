"""fairseq's beam search with and without oneDNN's products, side by side in one process. Every speed-up of the other
benchmarks is relative to this search.

    python benchmarks/bench_linear.py [--small 20,22,24] [--repeats 9]

Random weights, sources and outputs of 12 tokens. Compared are fairseq's generator as it is, ours with MKL only,
and ours with oneDNN for all products with a large weight and, with a small one, of at least 2^N multiplications.
Printed are medians and quartiles of the time, and the ratio of the median to fairseq's.
"""

import argparse
import logging
import statistics
import time
from argparse import Namespace
from unittest import mock

import torch
from bench_against_stock import task_of
from fairseq import options
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

import nar_plugins  # noqa: F401
from nar_plugins.generators.beam import BeamGenerator
from nar_plugins.generators.options import generation_options
from nar_plugins.modules import linear

SIZES = {"128, 3+3 layers, 2,000 words": (128, 512, 3, 2000), "512, 6+6 layers, 10,000 words": (512, 2048, 6, 10000)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", default="20,22", help="thresholds, as powers of two")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sentences", type=int, default=12, help="sentences per measurement, at batch size 1")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, oneDNN "
        f"{'used' if linear.onednn_is_faster() else 'not used'}"
    )
    for name, size in SIZES.items():
        for width in (1, 5):
            compare(name, size, width, args)


def compare(name: str, size: tuple, width: int, args) -> None:
    dim, ffn, layers, words = size
    task = task_of(words)
    given = ["data", "--task", "nar_translation", "--arch", "transformer", "--share-all-embeddings"]
    for side in ("encoder", "decoder"):
        given += [
            f"--{side}-embed-dim={dim}",
            f"--{side}-ffn-embed-dim={ffn}",
            f"--{side}-attention-heads=4",
            f"--{side}-layers={layers}",
        ]
    torch.manual_seed(1)
    arguments = options.parse_args_and_arch(options.get_training_parser("nar_translation"), given)
    model = ARCH_MODEL_REGISTRY["transformer"].build_model(arguments, task).eval()
    stock, search = (
        SequenceGenerator([model], task.target_dictionary, beam_size=width, max_len_b=11, min_len=11) for _ in range(2)
    )
    ours = BeamGenerator(
        [model],
        task.target_dictionary,
        Namespace(decode_dtype="float32"),
        generation_options(Namespace()),
        task.mask_index,
        search,
    )
    torch.manual_seed(2)
    sources = torch.randint(4, words - 2, (args.sentences, 1, 13))
    sources[..., -1] = 2
    samples = [
        {"id": torch.zeros(1), "net_input": {"src_tokens": s, "src_lengths": torch.tensor([13])}} for s in sources
    ]

    @torch.no_grad()
    def decode(generator):
        for sample in samples:
            generator.generate([model], sample)

    decode(ours)  # prepares the layers; below they are prepared otherwise
    powers = [int(power) for power in args.small.split(",")]
    loops = {"fairseq": (stock, None, 0), "ours, MKL only": (ours, None, 0)}
    loops.update({f"ours, from 2^{power}": (ours, torch.float32, 1 << power) for power in powers})
    times = {loop: [] for loop in loops}
    for turn in range(args.repeats + 1):
        for loop, (generator, dtype, threshold) in loops.items():
            with mock.patch.object(linear, "SMALL", threshold):
                for layer in ours.prepared[0].layers:
                    layer.prepare(dtype)
            generator.generate([model], samples[0])  # reorders the weights
            start = time.perf_counter()
            decode(generator)
            if turn:  # the first is the warm-up
                times[loop].append(time.perf_counter() - start)
    base = statistics.median(times["fairseq"])
    print(f"\n{name}, beam {width}")
    for loop, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        print(
            f"  {loop:22}{middle * 1000 / args.sentences:8.2f} ms a sentence ({low * 1000 / args.sentences:.2f} to "
            f"{high * 1000 / args.sentences:.2f}), {middle / base:.3f} x fairseq's time"
        )


if __name__ == "__main__":
    main()
