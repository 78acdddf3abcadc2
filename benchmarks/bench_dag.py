"""What the graph of ``dag`` costs beside the Transformer, in training; and one pass of it beside CTC, in decoding.

    python benchmarks/bench_dag.py [--device cuda] [--dim 128] [--layers 3] [--upsample 4] [--train-dtype bfloat16]

Random weights and random sentences of one length. Training: the forward and backward pass of each part alone, on the
same batch: the encoder and decoder; the links; the tokens' probabilities on all vertices (in training, those on no
probable path have no backward pass); the sum over all paths; what glancing adds, a forward pass of all and the best
path; and a whole update but for the optimiser, glancing included. Decoding: every ``--dag-decode`` and CTC of the same
sizes, in turn. The links of random weights lead everywhere, and their tokens are unsure, so that lookahead computes the
tokens of all vertices; with --sharp both are about as sure as a trained model's, and it computes a third. Medians of
the repeats.
"""

import argparse
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from bench_against_stock import batch, build, in_turn, task_of

import nar_plugins  # noqa: F401
from nar_plugins.generators.canvas.dag import DagConfig, DagGenerator
from nar_plugins.generators.canvas.one_pass import OnePassConfig, OnePassGenerator
from nar_plugins.generators.options import generation_options
from nar_plugins.models.contract import Plan
from nar_plugins.models.dag import paths
from nar_plugins.models.dag.words import token_lprobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--words", type=int, default=6000)
    parser.add_argument("--length", type=int, default=16, help="tokens of a sentence, </s> counted")
    parser.add_argument("--tokens", type=int, default=2048, help="target tokens of a training batch")
    parser.add_argument("--batches", default="1,32", help="batch sizes of decoding")
    parser.add_argument("--upsample", type=int, default=4, help="vertices for every source token; CTC has 2")
    parser.add_argument("--train-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sharp", action="store_true", help="decode graphs that are as sure as a trained model's")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}; {args.dim} dimensions, "
        f"{args.layers}+{args.layers} layers, {args.words} words, {args.length} tokens, upsampled {args.upsample}"
    )
    task = task_of(args.words)
    training(task, args)
    for size in map(int, args.batches.split(",")):
        decoding(size, task, args)


def model_of(arch: str, task, args, *flags: str):
    sizes = [
        f"--{side}-{what}"
        for side in ("encoder", "decoder")
        for what in (
            f"embed-dim={args.dim}",
            f"ffn-embed-dim={4 * args.dim}",
            f"attention-heads={args.heads}",
            f"layers={args.layers}",
        )
    ]
    return build(arch, task, *sizes, *flags).to(args.device)


def training(task, args) -> None:
    """Seconds of the parts of an update; what flows from one to the next is detached, so that each pays for itself."""
    model = model_of("dag", task, args, f"--upsample={args.upsample}", "--dropout=0.1", "--glancing=0.5")
    sample = batch(max(1, args.tokens // args.length), args)
    source, target = sample["net_input"]["src_tokens"], sample["target"]
    steps, sentences = target.ne(model.pad).sum(1), torch.arange(len(target), device=target.device)
    memory = model.encode(source)
    canvas = model.canvas(memory, Plan(sentences))
    last = canvas.lengths() - 1

    def autocast():
        half = args.train_dtype == "bfloat16"
        return torch.autocast(args.device, torch.bfloat16) if half else nullcontext()

    with autocast():
        features = model.decode(canvas, memory).detach().requires_grad_()
        emissions, links = (x.detach().requires_grad_() for x in model.graph(features, canvas, target))

    def timed(compute):
        def job():
            with autocast():
                result = compute()
            result.backward()

        return job

    draws = torch.rand(target.shape, device=target.device)

    def glancing():
        with autocast():
            model.reveal(canvas, memory, target, draws, torch.ones_like(steps, dtype=torch.bool))

    def graph_links():
        found = model.links(features, canvas)
        return found.masked_fill(found.eq(paths.IMPOSSIBLE), 0).mean()

    jobs = {
        "encoder and decoder": timed(lambda: model.decode(canvas, model.encode(source)).float().mean()),
        "links": timed(graph_links),
        "tokens on the vertices": timed(
            lambda: token_lprobs(model.decoder.output_projection, features, canvas.real(), target).mean()
        ),
        "sum over all paths": timed(lambda: paths.log_marginal(emissions, links, steps, last).sum()),
        "glancing": glancing,
        "an update": timed(lambda: model(**sample["net_input"], target=target, reveal_draws=draws)["words"].loss),
    }
    seconds = in_turn(list(jobs.values()), args)
    print(f"\n{f'{len(target)} sentences, {args.train_dtype}':30}{'ms':>10}{'x the first':>14}")
    for name, taken in zip(jobs, seconds):
        print(f"{name:30}{taken * 1000:10.0f}{taken / seconds[0]:14.2f}")


def decoding(size: int, task, args) -> None:
    """Sentences a second of every strategy, and of CTC."""
    options = generation_options(SimpleNamespace())
    given = task.target_dictionary, task.mask_index
    graph = model_of("dag", task, args, f"--upsample={args.upsample}")
    ctc = model_of("nat", task, args, "--ctc", "--upsample=2")
    loops = {"CTC, best path": OnePassGenerator([ctc], given[0], OnePassConfig(), options, given[1])}
    for strategy in ("lookahead", "greedy", "viterbi", "joint-viterbi"):
        config = DagConfig(dag_decode=strategy)
        loops[f"DAG, {strategy}"] = DagGenerator([graph], given[0], config, options, given[1])
    if args.sharp:
        sharpen(loops["DAG, lookahead"].models[0], args.upsample)  # that of all strategies
    sample = batch(size, args)
    runs = 20 if size == 1 else 4
    jobs = [lambda loop=loop: [loop.generate(loop.models, sample) for _ in range(runs)] for loop in loops.values()]
    seconds = in_turn(jobs, args)
    print(f"\n{f'batch {size}':30}{'ms a batch':>12}{'sentences/s':>14}{'x CTC':>10}")
    for name, taken in zip(loops, seconds):
        print(f"{name:30}{taken / runs * 1000:12.1f}{size * runs / taken:14.1f}{seconds[0] / taken:10.2f}")


def sharpen(model, upsample: int) -> None:
    """Let a model decode surer tokens, and links of about ``upsample`` vertices to a few that most paths visit. Its own
    links are computed all the same.
    """
    project, own_links, made = model.project, model.links, {}

    def links(features, canvas):
        own = own_links(features, canvas)
        if own.shape not in made:
            torch.manual_seed(3)
            places = torch.arange(own.size(1), device=own.device)
            far = (places - places.unsqueeze(1) - upsample).abs()
            logits = 1.5 * torch.randn_like(own[:, :1]) + 0.7 * torch.randn_like(own) - 0.5 * far
            logits = logits.masked_fill(own.eq(paths.IMPOSSIBLE), paths.IMPOSSIBLE)
            made[own.shape] = logits.log_softmax(2).nan_to_num(nan=paths.IMPOSSIBLE)  # of the last vertex
        return made[own.shape]

    model.links, model.project = links, lambda features: project(4.5 * features)


if __name__ == "__main__":
    main()
