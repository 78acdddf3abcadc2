"""The cost of a step of blockwise decoding, and what drafts cost that are always wrong.

    python benchmarks/bench_blockwise.py [--tables costs,wrong] [--kinds full,masks] [--batches 1,32] [--device cuda]

Random weights. ``costs``: for some model sizes and one sentence, a decoder call with 1 to 8 tokens, output layer and
selection included, and one proposal of a sequential head. ``OVERHEAD`` (drafters/length_policy.py) is the fixed cost of
a call, in tokens; ``DRAFT``, ``LAYER`` and ``CALL`` (drafters/base.py) are the share of a call that one proposal takes.
The first column is a call of one token with the layers in their plain form. All are timed in turn, and the median
counts.

``wrong``: the time of adaptive decoding with drafts that are always wrong, as a ratio to one token a call, for every
kind of drafts and batch size: of the first batch of a run, and of later ones. The drafts are made as usual, and then
replaced by a token that the output does not have. Their probability is the drafter's own, that of random weights; in
the rows "sure" it is 1. Of the decodings with the same work the fastest counts.
"""

import argparse
import logging
from types import SimpleNamespace

import torch
from bench_against_stock import build, clock, in_turn, task_of

import nar_plugins  # noqa: F401
from nar_plugins.generators.left_to_right.blockwise import BlockwiseConfig, BlockwiseGenerator
from nar_plugins.generators.left_to_right.drafters import self_drafter
from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, VerifyResult
from nar_plugins.generators.left_to_right.drafters.length_policy import AcceptanceHistory, DraftLengthPolicy
from nar_plugins.generators.options import generation_options
from nar_plugins.modules.block_decoder import BlockCache, block_decoder
from nar_plugins.modules.fast.prepare import prepare_for_decoding

SIZES = ((128, 2), (128, 3), (128, 6), (256, 3), (512, 6))  # dimensions, layers a side
TOKENS = (1, 2, 4, 8)
LENGTH, BEFORE = 20, 10  # tokens of the source, and of the prefix in the cache
KINDS = {  # the architecture, its flags, and the options of the generator
    "full": ("blockwise", ("--block-head=full", "--block-size=8"), {}),
    "diag": ("blockwise", ("--block-head=diag", "--block-size=8"), {}),
    "sequential": ("blockwise", ("--block-head=sequential", "--block-size=8"), {}),
    "jacobi": ("transformer", (), {"drafter": "jacobi"}),
    "copy": ("transformer", (), {"drafter": "copy"}),
    "model": ("transformer", (), {"drafter": "model"}),
    "masks": ("bang", ("--max-source-positions=256", "--max-target-positions=256"), {}),
}
CRITERIONS = {"blockwise": "blockwise_loss", "transformer": "cross_entropy", "bang": "bang_loss"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="costs,wrong")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--words", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=50, help="of a cost")
    parser.add_argument("--kinds", default=",".join(KINDS), help="wrong: the drafts")
    parser.add_argument("--batches", default="1,4,8,16,32", help="wrong: sentences")
    parser.add_argument("--decodings", type=int, default=15, help="wrong: decodings of a batch")
    parser.add_argument("--size", default="128,3", help="wrong: dimensions, layers a side")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    task = task_of(args.words)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}; {args.words} words")
    for table in args.tables.split(","):
        {"costs": print_costs, "wrong": print_wrong}[table](task, args)


def print_costs(task, args) -> None:
    """The table ``costs``."""
    print("\nms, batch 1\n")
    cells = ["plain", *(f"{m} a call" for m in TOKENS), "proposal", "of a call", "assumed", "a token", "assumed"]
    print(f"{'dimensions, layers':20}" + "".join(f"{cell:>11}" for cell in cells))
    for dim, layers in SIZES:
        prepared = prepare_for_decoding(made("sequential", dim, layers, task).to(args.device), "float32")
        prepared.update(torch.float32)
        model = prepared.model
        drafter = self_drafter([model.block_decoder()], (task.mask_index, task.target_dictionary.pad()), rough=True)
        calls, proposal = measure(model, drafter, args)
        policy = DraftLengthPolicy(drafter, None, args.device)
        token = (calls[-1] - calls[2]) / (TOKENS[-1] - TOKENS[1])
        assumed = (policy.overhead * drafter.fixed_cost(1) + drafter.cost_per_row(1)) / (policy.overhead + 1)
        numbers = [*calls, proposal]
        print(
            f"{f'{dim}, {layers}':20}"
            + "".join(f"{1000 * number:11.2f}" for number in numbers)
            + f"{proposal / calls[1]:11.3f}{assumed:11.3f}{token / calls[1]:11.3f}{1 / (policy.overhead + 1):11.3f}",
            flush=True,
        )


def made(kind: str, dim: int, layers: int, task):
    """A model of one of ``KINDS``, with random weights; heads that start at zero are shaken, too."""
    arch, flags, _ = KINDS[kind]
    return shaken(build(arch, task, f"--criterion={CRITERIONS[arch]}", *flags, *sizes(dim, layers)))


def sizes(dim: int, layers: int) -> list:
    """The flags of a model's sizes."""
    return [
        f"--{side}-{name}={number}"
        for side in ("encoder", "decoder")
        for name, number in (
            ("embed-dim", dim),
            ("ffn-embed-dim", 4 * dim),
            ("attention-heads", dim // 32),
            ("layers", layers),
        )
    ]


@torch.no_grad()
def shaken(model):
    """The model; proposal heads are given random weights, so that they are not the base's prediction."""
    heads = getattr(model.decoder, "proposal_heads", None)
    if heads is not None:
        torch.manual_seed(3)
        heads.weight.normal_(std=heads.weight.size(-1) ** -0.5)
    return model


class Wrong(Drafter):
    """Another drafter's work, for drafts that are never accepted.

    Args:
        drafter: the other. symbol: one that the output does not have. sure: the drafts claim to be certain.
    """

    def __init__(self, drafter: Drafter, symbol: int, sure: bool):
        self.drafter, self.symbol, self.sure, self.made = drafter, symbol, sure, []
        for name in ("max_draft_tokens", "adaptive_length", "probe_tokens", "probe_calls", "begin", "set_budget"):
            setattr(self, name, getattr(drafter, name))
        for name in ("verify_cost", "cost_per_row", "fixed_cost", "begin_cost_per_token", "begin_fixed_cost"):
            setattr(self, name, getattr(drafter, name))

    def draft(self, verified: VerifyResult, count: int, state) -> Drafts:
        tokens, lprobs = self.drafter.draft(verified, count, state)
        self.made.append(tokens.size(1))
        lprobs = None if lprobs is None else torch.zeros_like(lprobs) if self.sure else lprobs
        return Drafts(torch.full_like(tokens, self.symbol), lprobs)

    def drafts(self) -> tuple:
        """The number of drafts of every call since the last time."""
        made, self.made = tuple(self.made), []
        return made


def print_wrong(task, args) -> None:
    """The table ``wrong``."""
    dim, layers = map(int, args.size.split(","))
    batches = [int(batch) for batch in args.batches.split(",")]
    print(
        f"\nwrong drafts, {dim} dimensions, {layers} layers: time / that of one token a call; first batch, later ones\n"
    )
    print(f"{'drafts':18}" + "".join(f"{f'batch {batch}':>15}" for batch in batches))
    for kind in args.kinds.split(","):
        model = made(kind, dim, layers, task).to(args.device).eval()
        for sure in (False, True) if kind not in ("jacobi", "copy", "model") else (False,):  # these give no probability
            ratios = [wrong_ratios(kind, model, sure, batch, task, args) for batch in batches]
            cells = "".join(f"{first:9.3f}{later:6.3f}" for first, later in ratios)
            print(f"{kind + (', sure' if sure else ''):18}{cells}", flush=True)


def wrong_ratios(kind: str, model, sure: bool, batch: int, task, args) -> tuple:
    """The time of the first batch of a run, and of a later one, by that of one token a call."""
    torch.manual_seed(4)
    source = torch.randint(4, args.words - 2, (batch, LENGTH), device=args.device)
    source[:, -1] = task.source_dictionary.eos()
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.full((batch,), LENGTH, device=args.device)}}
    one, first, later = (generator(kind, model, task, args, block) for block in (1, None, None))
    output = [hypotheses[0] for hypotheses in one.generate([model], sample)]
    symbols = set(range(4, args.words - 2)) - {
        token for hypothesis in output for token in hypothesis["tokens"].tolist()
    }
    for each in (first, later):
        each.drafter = Wrong(each.drafter, min(symbols), sure)
    works = [{}, {}, {}]  # of each, the drafts that were made in a decoding -> its seconds
    for number in range(args.decodings + 2):  # the first two are the warm-up
        for each, its in zip((one, first, later), works):
            first.history = AcceptanceHistory()
            start = clock(args.device)
            found = each.generate([model], sample)
            seconds = clock(args.device) - start
            drafts = each.drafter.drafts() if each is not one else ()
            its.setdefault(drafts, []).extend([seconds] if number > 1 else [])
            same = [hypotheses[0]["tokens"].equal(own["tokens"]) for hypotheses, own in zip(found, output)]
            assert all(same) and all(h[0]["steps"] == len(own["tokens"]) for h, own in zip(found, output))
    one, first, later = map(mean_of_minima, works)
    return first / one, later / one


def mean_of_minima(work: dict) -> float:
    """The mean of all seconds, each replaced by the least of those of the same work: other processes only add to it."""
    return sum(min(times) * len(times) for times in work.values() if times) / sum(map(len, work.values()))


def generator(kind: str, model, task, args, block) -> BlockwiseGenerator:
    """A generator whose outputs have as many tokens as the source, at most."""
    settings = KINDS[kind][2]
    drafter = None
    if settings.get("drafter") == "model":
        dim, layers = map(int, args.size.split(","))
        flags = ("--criterion=nar_loss", "--source-copy=uniform", *sizes(dim, layers))
        drafter = build("nat", task, *flags).to(args.device).eval()
    config = BlockwiseConfig(verify_block=block, **settings)
    options = generation_options(SimpleNamespace(beam=1, max_len_b=LENGTH - 1))
    dictionary = task.target_dictionary
    return BlockwiseGenerator([model], dictionary, config, options, task.mask_index, drafter=drafter)


@torch.inference_mode()
def measure(model, drafter, args) -> tuple:
    """Seconds of a call in the plain form, of one with each of ``TOKENS``, and of one proposal."""
    torch.manual_seed(2)
    source = torch.randint(4, args.words - 2, (1, LENGTH), device=args.device)
    lengths = torch.full((1,), LENGTH, device=args.device)
    encoded = model.encoder.forward_torchscript({"src_tokens": source, "src_lengths": lengths})
    decoder, slow = block_decoder(model), block_decoder(model)
    plain = BlockCache(slow.start(encoded).memory)
    slow.fast = None
    cache, state = decoder.start(encoded), drafter.begin({}, [encoded])
    decoder(source[:, :BEFORE], torch.zeros_like(lengths), 0, 0, LENGTH, cache)
    first = torch.full_like(lengths, BEFORE)

    slow(source[:, :BEFORE], torch.zeros_like(lengths), 0, 0, LENGTH, plain)

    def call(tokens: int, decoder=decoder, cache=cache):
        features, _ = decoder(source[:, :tokens], first, BEFORE, BEFORE, 2 * LENGTH, cache)
        return features, decoder.logits(features).log_softmax(-1).topk(2)

    verified = VerifyResult(torch.arange(1, device=args.device), source, first, [call(1)[0][:, 0]], None, None)
    works = [
        lambda: call(1, slow, plain),
        *(lambda m=m: call(m) for m in TOKENS),
        *(lambda n=n: drafter.draft(verified, n, state) for n in (1, 7)),
    ]
    *calls, one, seven = in_turn(works, args)
    return calls, (seven - one) / 6


if __name__ == "__main__":
    main()
