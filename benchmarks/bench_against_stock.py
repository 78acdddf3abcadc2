"""Our CMLM against fairseq's own ``cmlm_transformer`` and ``IterativeRefinementGenerator``, side by side in one
process.

    python benchmarks/bench_against_stock.py [--device cuda] [--batches 1,8,32] [--repeats 3] [--profile]

Random weights, the same sizes, the same forced lengths, the same passes (fairseq's ``--iter-decode-max-iter 9
--iter-decode-force-max-iter`` is R = 10) and length beam; the systems run in turn, and the median of the repeats
counts. bfloat16 and int8 are measured where the device has them.

``commits`` is ``--schedule confidence``, also with R = 10. How many passes that takes depends on how sure the model is,
so its features are scaled until it takes about ``--passes`` in the mean: Multi30k's trained CMLM took 7.4 at the
threshold 0.9, with the BLEU of 10 (``examples/multi30k/EXPECTED.md``). The passes of the measured batch are printed.

Also measured: training updates per second on the same batch.
"""

import argparse
import copy
import logging
import math
import statistics
import time
from types import SimpleNamespace

import torch
from fairseq import options
from fairseq.criterions.nat_loss import LabelSmoothedDualImitationCriterion
from fairseq.data import Dictionary
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.models import ARCH_MODEL_REGISTRY

import nar_plugins  # noqa: F401
from nar_plugins.data.dictionary import add_mask
from nar_plugins.data.noise import mask_uniform
from nar_plugins.generators.canvas.mask_predict import MaskPredictConfig, MaskPredictGenerator
from nar_plugins.generators.options import generation_options
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16
from nar_plugins.modules.losses import TokenObjective


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,8,32", help="batch sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--length", type=int, default=28, help="tokens, both sides")
    parser.add_argument("--words", type=int, default=10000)
    parser.add_argument("--passes", type=float, default=7.4, help="mean passes of the rows that commit")
    parser.add_argument("--profile", action="store_true", help="print a profile of our generator instead of the table")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    task = task_of(args.words)
    dictionary = task.target_dictionary
    stock, ours = (build(arch, task).to(args.device) for arch in ("cmlm_transformer", "cmlm"))
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}; {args.length} tokens, "
        f"{args.words} words"
    )
    if args.profile:
        profile(ours, task, args)
        return

    sure = copy.deepcopy(ours)
    become_sure(sure, task, args)
    types = decoding_types(torch.device(args.device))
    loops = {"fairseq's, float32": stock_loop(stock, dictionary, args.length)}
    loops.update({f"ours, {dtype}": our_loop(ours, task, dtype) for dtype in types})
    loops.update({f"commits, {dtype}": our_loop(sure, task, dtype, schedule="confidence") for dtype in types})
    for size in map(int, args.batches.split(",")):
        sample = batch(size, args)
        seconds = in_turn([lambda loop=loop: loop(sample) for loop in loops.values()], args)
        print(
            f"\n{f'decoding, R = 10, L = 5, batch {size}':36}{'ms':>8}{'sentences/s':>14}{'x fairseq':>12}{'passes':>9}"
        )
        for (name, loop), taken in zip(loops.items(), seconds):
            passes = 10 if name.startswith("fairseq") else mean_passes(loop(sample))
            print(
                f"{name:36}{taken * 1000:8.0f}{size / taken:14.2f}{seconds[0] / taken:12.2f}{passes:9.1f}", flush=True
            )

    sample = batch(64, args)
    halves = [False, True] if "bfloat16" in types else [False]
    steps = [stock_step(stock, task), *(our_step(ours, task, half) for half in halves)]
    seconds = in_turn([lambda step=step: step(sample) for step in steps], args)
    print(f"\n{'training, 64 sentences':36}{'ms':>8}{'x fairseq':>12}")
    for name, taken in zip(("fairseq's, float32", "ours, float32", "ours, bfloat16"), seconds):
        print(f"{name:36}{taken * 1000:8.0f}{seconds[0] / taken:12.2f}")


def decoding_types(device: torch.device) -> list:
    """The types of decoding that the device has in hardware."""
    half = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    weights = device.type == "cpu" and fbgemm_has_float16()
    return ["float32", *["float16"] * weights, *["bfloat16"] * half, *["int8"] * (int8_lacks(device) is None)]


def mean_passes(hypotheses: list) -> float:
    """The mean passes of the best hypotheses."""
    return statistics.mean(best["steps"] for best, *_ in hypotheses)


def become_sure(model, task, args) -> None:
    """Scale the features that are projected until ``--schedule confidence`` takes about ``--passes``, by bisection.

    The scale is the logarithm's: probabilities are not linear in it. The vector of ``<mask>`` is zero: it is the input
    at open positions and tied to the output, and a random model would be sure of ``<mask>`` there.
    """
    with torch.no_grad():
        model.decoder.embed_tokens.weight[task.mask_index] = 0
    loop, sample = our_loop(model, task, "float32", schedule="confidence"), batch(4, args)
    norm = model.decoder.layers[-1].final_layer_norm  # post-norm: what is projected
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()

    def scaled(scale: float) -> None:
        with torch.no_grad():
            norm.weight.copy_(weight * scale)
            norm.bias.copy_(bias * scale)

    low, high = 1.0, 1000.0
    for _ in range(8):
        scale = math.sqrt(low * high)
        scaled(scale)
        if mean_passes(loop(sample)) > args.passes:
            low = scale
        else:
            high = scale
    scaled(high)


def task_of(words: int) -> SimpleNamespace:
    """What the models and loops read of a task whose one dictionary has so many symbols."""
    dictionary = Dictionary()
    for i in range(words - 5):
        dictionary.add_symbol(f"w{i}")
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, mask_index=add_mask(dictionary))


def arguments(arch: str, *flags: str) -> argparse.Namespace:
    """fairseq-train's: 512/1024, 4 heads, 6+6 layers, shared embeddings, fairseq's form in all models, where ``flags``
    say nothing else.
    """
    parser = options.get_training_parser("nar_translation")
    given = ["data", "--task", "nar_translation", "--criterion", "nar_loss", "--arch", arch, "--share-all-embeddings"]
    for side in ("encoder", "decoder"):
        given += [
            f"--{side}-embed-dim=512",
            f"--{side}-ffn-embed-dim=1024",
            f"--{side}-attention-heads=4",
            f"--{side}-layers=6",
        ]
    args = options.parse_args_and_arch(parser, input_args=[*given, *flags])
    args.label_smoothing = 0.1  # fairseq's model reads its criterion's
    return args


def build(arch: str, task, *flags: str):
    """The model of ``arguments``, with random weights."""
    torch.manual_seed(1)
    return ARCH_MODEL_REGISTRY[arch].build_model(arguments(arch, *flags), task)


def batch(size: int, args) -> dict:
    """Random source and target of equal lengths."""
    torch.manual_seed(2)
    tokens = torch.randint(4, args.words - 2, (2, size, args.length), device=args.device)
    tokens[:, :, -1] = 2
    lengths = torch.full((size,), args.length, device=args.device)
    return {
        "id": torch.arange(size, device=args.device),
        "net_input": {"src_tokens": tokens[0], "src_lengths": lengths},
        "target": tokens[1],
        "ntokens": size * args.length,
        "nsentences": size,
    }


def stock_loop(model, dictionary, length: int):
    """fairseq's generator, with a model that 'predicts' the given length; its beam is length - 2 .. length + 2."""
    loop = IterativeRefinementGenerator(dictionary, models=[model], max_iter=9, beam_size=5, adaptive=False)
    model.decoder.forward_length_prediction = lambda out, encoder_out, tgt=None: torch.full(
        (encoder_out["encoder_out"][0].size(1),), length, device=encoder_out["encoder_out"][0].device
    )
    return lambda sample: loop.generate([model], sample)


def our_loop(model, task, dtype: str, **more):
    """Ours, with --gold-length: the same five lengths."""
    config = MaskPredictConfig(iterations=10, length_beam=5, gold_length=True, decode_dtype=dtype, **more)
    loop = MaskPredictGenerator(
        [model], task.target_dictionary, config, generation_options(SimpleNamespace()), task.mask_index
    )

    def decode(sample):
        model.eval()
        found = loop.generate([model], sample)
        assert (
            all({len(h["tokens"]) for h in hs} == set(range(26, 31)) for hs in found) or sample["target"].size(1) != 28
        )
        return found

    return decode


def stock_step(model, task):
    """Forward and backward of fairseq's CMLM."""
    criterion = LabelSmoothedDualImitationCriterion(SimpleNamespace(target_dictionary=task.target_dictionary), 0.1)
    prediction = type(model.decoder).forward_length_prediction

    def step(sample):
        model.train()
        model.decoder.forward_length_prediction = prediction.__get__(model.decoder)
        target = sample["target"]
        masked, _ = mask_uniform(target, sample["id"], 1, 1, 1, task.target_dictionary.unk())
        loss, _, _ = criterion(model, {**sample, "tgt_tokens": target, "prev_target": masked})
        loss.backward()
        model.zero_grad()

    return step


def our_step(model, task, bfloat16: bool):
    """Forward and backward of ours, with --train-dtype."""

    def step(sample):
        model.train()
        target = sample["target"]
        masked, _ = mask_uniform(target, sample["id"], 1, 1, 1, task.mask_index)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=bfloat16):
            objective = TokenObjective(label_smoothing=0.1)
            parts = model(**sample["net_input"], prev_output_tokens=masked, target=target, objective=objective)
            ((parts["words"].loss + parts["length"].loss) / parts["words"].count).backward()
        model.zero_grad()

    return step


def in_turn(jobs, args) -> list:
    """Median seconds of every job, all of them run in turn so that a slow minute of the machine meets all."""
    times = [[] for _ in jobs]
    for repeat in range(args.repeats + 1):
        for job, seconds in zip(jobs, times):
            start = clock(args.device)
            job()
            if repeat:  # the first is the warm-up
                seconds.append(clock(args.device) - start)
    return [statistics.median(seconds) for seconds in times]


def clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def profile(model, task, args) -> None:
    """The operators our decoding spends its time in."""
    sample, loop = batch(int(args.batches.split(",")[0]), args), our_loop(model, task, "float32")
    loop(sample)
    with torch.profiler.profile() as recorded:
        loop(sample)
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


if __name__ == "__main__":
    main()
