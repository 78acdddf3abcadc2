"""One pass of ``nat`` against fairseq's own autoregressive ``transformer`` and ``SequenceGenerator``, side by side in
one process.

    python benchmarks/bench_one_pass.py [--device cuda] [--batches 1,32] [--lengths FILE] [--repeats 3]

Random weights, the same sizes (512/1024, 6+6 layers, a vocabulary of 10,000), real lengths: those of newstest2014's
English side, or of ``--lengths FILE``, in words, punctuation marks and ``</s>``. The target is forced to be as long as
the source. For every batch size some sentences from the whole range of lengths, batched by length. The
systems take turns, and the median of the repeats counts.
"""

import argparse
import gzip
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_against_stock import build, in_turn, task_of
from fairseq.sequence_generator import SequenceGenerator

import nar_plugins  # noqa: F401
from nar_plugins.generators.canvas.one_pass import OnePassConfig, OnePassGenerator
from nar_plugins.generators.options import generation_options

# How many of newstest2014's 3,003 English sentences have 3, 4, ... 59 tokens; the longer ones by length.
COUNTS = """
3 4 9 16 41 54 53 80 76 98 93 109 123 108 101 117 113 101 115 111 90 103 92 96 70 78 71 79 72 56 63 59 50 51
45 41 36 33 33 23 30 18 28 18 13 15 17 11 9 15 10 6 4 4 4 4 11
"""
LONG = {60: 4, 62: 2, 64: 5, 67: 2, 69: 2, 73: 1, 75: 1, 80: 1, 82: 1, 95: 1}
SENTENCES = {1: 40}  # how many are timed; other batch sizes: four batches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,32", help="batch sizes")
    parser.add_argument("--lengths", type=Path, help="a text whose lengths count, one sentence a line, plain or .gz")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--words", type=int, default=10000)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    lengths = newstest2014() if args.lengths is None else lengths_of(args.lengths)

    task = task_of(args.words)
    dictionary = task.target_dictionary
    ar = build("transformer", task).to(args.device).eval()
    systems = {
        "AR greedy": autoregressive(ar, dictionary, 1),
        "AR beam 5": autoregressive(ar, dictionary, 5),
        "NAT, fertility": one_pass(task, args.device),
        "NAT, length head": one_pass(task, args.device, "--source-copy", "uniform"),
        "NAT, Gu's decoder": one_pass(
            task, args.device, "--positional-attention", "--mask-diagonal", "--layerwise-attention"
        ),
        "NAT, CTC x 2": one_pass(task, args.device, "--ctc"),
    }
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}; mean length "
        f"{sum(lengths) / len(lengths):.1f}, {args.words} words"
    )
    for size in map(int, args.batches.split(",")):
        batches = make_batches(lengths, size, SENTENCES.get(size, 4 * size), args)
        seconds = in_turn([lambda s=system: [s(batch) for batch in batches] for system in systems.values()], args)
        count = size * len(batches)
        print(f"\n{f'batch {size}':20}{'ms a batch':>12}{'sentences/s':>14}{'x greedy':>10}{'x beam 5':>10}")
        for name, taken in zip(systems, seconds):
            print(
                f"{name:20}{taken / len(batches) * 1000:12.1f}{count / taken:14.1f}{seconds[0] / taken:10.2f}"
                f"{seconds[1] / taken:10.2f}",
                flush=True,
            )


def newstest2014() -> list:
    """The lengths of newstest2014's English sentences, ascending."""
    counts = {**dict(enumerate(map(int, COUNTS.split()), 3)), **LONG}
    return [length for length, count in counts.items() for _ in range(count)]


def lengths_of(path: Path) -> list:
    """The lengths of a text's sentences, ascending; ends the program where there is no such text."""
    if not path.is_file():
        raise SystemExit(f"bench_one_pass.py: no {path}: --lengths names a text, a sentence a line, plain or .gz")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return sorted(1 + len(re.findall(r"\w+|[^\w\s]", line)) for line in file)


def make_batches(lengths: list, size: int, count: int, args) -> list:
    """Batches of sentences of similar length, from the whole range: random tokens, padded on the right."""
    torch.manual_seed(2)
    starts = torch.linspace(0, len(lengths) - size, count // size).long().tolist()
    batches = []
    for start in starts:
        sizes = torch.tensor(lengths[start : start + size])
        tokens = torch.randint(4, args.words - 2, (size, int(sizes.max())))
        places = torch.arange(tokens.size(1))
        tokens = tokens.masked_fill(places >= sizes.unsqueeze(1), 1).scatter(1, sizes.unsqueeze(1) - 1, 2)
        tokens, sizes = tokens.to(args.device), sizes.to(args.device)
        batches.append(
            {"id": torch.arange(size), "net_input": {"src_tokens": tokens, "src_lengths": sizes}, "target": tokens}
        )
    return batches


def autoregressive(model, dictionary, beam: int):
    """fairseq's own search, forced to the source's length."""

    def decode(sample):
        length = sample["net_input"]["src_tokens"].size(1) - 1  # its lengths do not count </s>
        search = SequenceGenerator([model], dictionary, beam_size=beam, max_len_a=0, max_len_b=length, min_len=length)
        with torch.no_grad():
            return search.generate([model], sample)

    return decode


def one_pass(task, device: str, *flags: str):
    """Our one-pass generator, forced to the source's length: the fertility head always predicts 1, the length head is
    given the gold length.
    """
    model = build("nat", task, *flags).to(device).eval()
    if model.needs_fertilities:
        with torch.no_grad():
            model.encoder.fertility_head.bias[1] += 1e4
    config = OnePassConfig(gold_length="uniform" in flags)
    loop = OnePassGenerator(
        [model], task.target_dictionary, config, generation_options(SimpleNamespace()), task.mask_index
    )

    def decode(sample):
        hypotheses = loop.generate([model], sample)
        wanted = sample["net_input"]["src_lengths"].tolist()
        assert model.args.ctc or [len(h[0]["tokens"]) for h in hypotheses] == wanted
        return hypotheses

    return decode


if __name__ == "__main__":
    main()
