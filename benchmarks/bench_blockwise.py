"""The cost of a step of blockwise decoding, measured and as the draft length policy assumes it.

    python benchmarks/bench_blockwise.py [--device cuda] [--words 6000] [--repeats 50]

Random weights, one sentence. For some model sizes: a decoder call with 1 to 8 tokens, output layer and selection
included, and one proposal of a sequential head. ``OVERHEAD`` (drafters/length_policy.py) is the fixed cost of a call,
in tokens; ``HEAD``, ``LAYER`` and ``CALL`` (drafters/heads.py) are the share of a call that one proposal takes. All are
timed in turn, and the median counts.
"""

import argparse
import logging

import torch
from bench_against_stock import build, in_turn, task_of

import nar_plugins  # noqa: F401
from nar_plugins.generators.left_to_right.drafters import self_drafter
from nar_plugins.generators.left_to_right.drafters.base import VerifyResult
from nar_plugins.generators.left_to_right.drafters.length_policy import DraftLengthPolicy
from nar_plugins.modules.block_decoder import block_decoder

SIZES = ((128, 2), (128, 3), (128, 6), (256, 3), (512, 6))  # dimensions, layers a side
TOKENS = (1, 2, 4, 8)
LENGTH, BEFORE = 20, 10  # tokens of the source, and of the prefix in the cache


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--words", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    task = task_of(args.words)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}; {args.words} words; ms, batch "
        "1\n"
    )
    cells = [*(f"{m} a call" for m in TOKENS), "proposal", "of a call", "assumed", "a token", "assumed"]
    print(f"{'dimensions, layers':20}" + "".join(f"{cell:>11}" for cell in cells))
    for dim, layers in SIZES:
        model = sequential(dim, layers, task).to(args.device).eval()
        drafter = self_drafter([model.block_decoder()], (task.mask_index, task.target_dictionary.pad()))
        calls, proposal = measure(model, drafter, args)
        policy = DraftLengthPolicy(drafter, None, args.device)
        token = (calls[-1] - calls[1]) / (TOKENS[-1] - TOKENS[1])
        assumed = (policy.overhead * policy.fixed_cost[1] + policy.cost_per_row[1]) / (policy.overhead + 1)
        numbers = [*calls, proposal]
        print(
            f"{f'{dim}, {layers}':20}"
            + "".join(f"{1000 * number:11.2f}" for number in numbers)
            + f"{proposal / calls[0]:11.3f}{assumed:11.3f}{token / calls[0]:11.3f}{1 / (policy.overhead + 1):11.3f}",
            flush=True,
        )


def sequential(dim: int, layers: int, task):
    """A ``blockwise`` model with eight sequential heads."""
    flags = ["--criterion=blockwise_loss", "--block-size=8", "--block-head=sequential"]
    for side in ("encoder", "decoder"):
        flags += [
            f"--{side}-embed-dim={dim}",
            f"--{side}-ffn-embed-dim={4 * dim}",
            f"--{side}-attention-heads={dim // 32}",
            f"--{side}-layers={layers}",
        ]
    return build("blockwise", task, *flags)


@torch.inference_mode()
def measure(model, drafter, args) -> tuple:
    """Seconds of a call with each of ``TOKENS``, and of one proposal."""
    torch.manual_seed(2)
    source = torch.randint(4, args.words - 2, (1, LENGTH), device=args.device)
    lengths = torch.full((1,), LENGTH, device=args.device)
    encoded = model.encoder.forward_torchscript({"src_tokens": source, "src_lengths": lengths})
    decoder = block_decoder(model)
    cache, state = decoder.start(encoded), drafter.begin({}, [encoded])
    decoder(source[:, :BEFORE], torch.zeros_like(lengths), 0, 0, LENGTH, cache)
    first = torch.full_like(lengths, BEFORE)

    def call(tokens: int):
        features, _ = decoder(source[:, :tokens], first, BEFORE, BEFORE, 2 * LENGTH, cache)
        return features, decoder.logits(features).log_softmax(-1).topk(2)

    verified = VerifyResult(torch.arange(1, device=args.device), source, first, [call(1)[0][:, 0]], None, None)
    works = [*(lambda m=m: call(m) for m in TOKENS), *(lambda n=n: drafter.draft(verified, n, state) for n in (1, 7))]
    *calls, one, seven = in_turn(works, args)
    return calls, (seven - one) / 6


if __name__ == "__main__":
    main()
