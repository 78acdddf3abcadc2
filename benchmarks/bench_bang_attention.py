#!/usr/bin/env python
"""The cost of BANG's n streams: row attention against attention with a dense mask, and a pre-training step against an
autoregressive one.

    python benchmarks/bench_bang_attention.py            # both, one thread
    python benchmarks/bench_bang_attention.py attention  # or step

Times are the minimum of several runs. Memory is what the forward pass saves for the backward pass.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from bang_twin import dense_buckets, dense_core, stream_positions, visible  # noqa: E402

from nar_plugins.criterions.bang_loss import BangLoss  # noqa: E402
from nar_plugins.models.bang.attention import NStreamAttention, Projected  # noqa: E402
from nar_plugins.models.bang.stream_layout import build_layout, mask_counts  # noqa: E402
from nar_plugins.modules.relative_positions import BUCKETS, bucket_table  # noqa: E402
from nar_plugins.tasks.translation import NarTranslationTask  # noqa: E402

BATCH, HEADS, WIDTH = 4, 4, 64
MIB = 1 << 20


def least(run, times: int) -> float:
    """Milliseconds of the fastest of several runs, after a warm-up."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def kept(forward) -> float:
    """MiB that ``forward`` saves for the backward pass, every storage once, without the gradients of its leaves."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    del result
    return sum(storages.values()) / MIB


def attention(length: int, streams: int, times: int) -> None:
    """Forward and backward between the projections, both from the same states."""
    torch.manual_seed(1)
    real = torch.ones(BATCH, length, dtype=torch.bool)
    positions = (torch.arange(length) + 2).expand(BATCH, -1)
    layout = build_layout(real, positions, mask_counts(real, streams=streams), False, bucket_table())
    module = NStreamAttention(HEADS * WIDTH, HEADS)
    count = (1 + streams) * length
    states = [torch.randn(BATCH, count, HEADS, size) for size in (WIDTH, WIDTH, WIDTH, BUCKETS)]
    where = torch.cat(
        [
            real.flatten().nonzero().squeeze(1) % length,
            (layout.masks.offset + 1) * length + layout.masks.start + layout.masks.offset,
        ]
    )
    sentence = torch.cat([real.nonzero()[:, 0], layout.masks.sentence])
    packed = [part[sentence, where].requires_grad_() for part in states]
    whole = [part.transpose(1, 2).contiguous().requires_grad_() for part in states]
    seen = visible(length, streams) | torch.eye(count, dtype=torch.bool)
    index = dense_buckets(stream_positions(length, streams))

    def rows():
        q, k, v, bias = packed
        projected = Projected(q * module.scaling, k, v, torch.nn.functional.pad(bias, (0, 1), value=-float("inf")))
        return module.attend_streams(projected, layout)

    def dense():
        q, k, v, relative = whole
        return dense_core(q, k, v, relative, index, seen)

    expected = dense().transpose(1, 2).flatten(2)[sentence, where]
    apart = float((rows() - expected).abs().max().detach())
    found = {}
    for name, forward in (("dense", dense), ("rows", rows)):
        gradient = torch.randn_like(forward())
        leaves = packed if name == "rows" else whole
        found[name] = (least(lambda: torch.autograd.grad(forward(), leaves, gradient), times), kept(forward))
    (slow, much), (fast, little) = found["dense"], found["rows"]
    print(
        f"T={length:<4} n={streams:<3} dense {slow:7.1f} ms {much:6.1f} MiB   rows {fast:7.1f} ms {little:6.1f} MiB   "
        f"{slow / fast:4.1f} times faster, {little / much:5.1%} of the memory, apart {apart:.0e}"
    )


def step(times: int, words: int, batch: int) -> None:
    """A ``bang_base`` pre-training step, forward and backward: 512 source tokens, 8 spans of 9 each."""
    given = [
        "data",
        "--task",
        "nar_translation",
        "--arch",
        "bang_base",
        "--criterion",
        "bang_loss",
        "--max-source-positions",
        "512",
        "--max-target-positions",
        "512",
    ]
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), given))
    dictionaries = [Dictionary(), Dictionary()]
    for dictionary in dictionaries:
        for i in range(words - 5):
            dictionary.add_symbol(f"w{i}")
    task = NarTranslationTask(config.task, *dictionaries)
    model = task.build_model(config.model).train()
    torch.manual_seed(1)
    text = torch.randint(4, words - 1, (batch, 512))
    spans = torch.cat([torch.arange(9) + 64 * block + 20 for block in range(8)])
    source = text.index_fill(1, spans, task.mask_index)
    sample = {
        "target": text[:, spans],
        "ntokens": batch * 72,
        "id": torch.arange(batch),
        "update": 1,
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(1).sum(1),
            "prev_output_tokens": text[:, spans - 1],
            "positions": (spans + 1).expand(batch, -1),
            "target_idx": torch.arange(9).repeat(batch, 8),
        },
    }
    found = {}
    for name, weights in (("AR only", {"bridge_weight": 0.0, "nar_weight": 0.0}), ("all masks", {})):
        criterion = BangLoss(task, **weights)
        masks = float(criterion(model, sample)[1])

        def run():
            model.zero_grad()
            criterion(model, sample)[0].backward()

        found[name] = least(run, times)
        print(f"bang_base, {batch} x 512 tokens, V={words}: {name:<9} {int(masks):5} masks {found[name]:8.0f} ms")
    print(f"all masks cost {found['all masks'] / found['AR only']:.2f} times an AR-only step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="what to measure: attention, step (default: both)")
    parser.add_argument("--times", type=int, default=5, help="runs per measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--words", type=int, default=30522, help="vocabulary size of the step")
    parser.add_argument("--batch", type=int, default=1, help="batch size of the step")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = args.parts or ["attention", "step"]
    for part in parts:
        if part not in ("attention", "step"):
            parser.error(f"no part '{part}': attention, step")
    if "attention" in parts:
        print(
            f"attention alone, forward and backward, float32, B={BATCH}, {HEADS} heads of {WIDTH}, {args.threads} "
            "thread"
        )
        for length, streams in ((32, 8), (72, 9), (64, 16), (64, 64)):
            attention(length, streams, args.times)
    if "step" in parts:
        step(max(2, args.times // 2), args.words, args.batch)


if __name__ == "__main__":
    main()
