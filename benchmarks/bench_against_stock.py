"""Our CMLM against fairseq's own ``cmlm_transformer`` and ``IterativeRefinementGenerator``, side by side in one
process.

    python benchmarks/bench_against_stock.py [--device cuda] [--batches 1,8,32] [--repeats 5] [--profile]

Random weights, the same sizes, the same forced lengths, the same passes (fairseq's ``--iter-decode-max-iter 9
--iter-decode-force-max-iter`` is R = 10) and length beam; both generators run in turn, and the median of the repeats
counts. Also measured: training updates per second on the same batch.
"""

import argparse
import logging
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
from nar_plugins.modules.losses import TokenObjective


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,8,32", help="batch sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=28, help="tokens, both sides")
    parser.add_argument("--words", type=int, default=10000)
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

    print(
        f"\n{'decoding, R = 10, L = 5':26}{'stock fp32':>14}{'ours fp32':>14}{'ours bf16':>14}   ours/stock: fp32, bf16"
    )
    for size in map(int, args.batches.split(",")):
        sample = batch(size, args)
        loops = [stock_loop(stock, dictionary, args.length)]
        loops += [our_loop(ours, task, dtype) for dtype in ("float32", "bfloat16")]
        seconds = in_turn([lambda loop=loop: loop(sample) for loop in loops], args)
        rate = [size / s for s in seconds]
        cells = "".join(f"{s * 1000:11.0f} ms" for s in seconds)
        print(f"batch {size:<20}{cells}   {rate[1] / rate[0]:.2f}, {rate[2] / rate[0]:.2f} x sentences/s", flush=True)

    sample = batch(64, args)
    steps = [stock_step(stock, task), our_step(ours, task, False), our_step(ours, task, True)]
    seconds = in_turn([lambda step=step: step(sample) for step in steps], args)
    cells = "".join(f"{s * 1000:11.0f} ms" for s in seconds)
    print(
        f"{'training, 64 sentences':26}{cells}   {seconds[0] / seconds[1]:.2f}, {seconds[0] / seconds[2]:.2f} x "
        "updates/s"
    )


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


def our_loop(model, task, dtype: str):
    """Ours, with --gold-length: the same five lengths."""
    config = MaskPredictConfig(iterations=10, length_beam=5, gold_length=True, decode_dtype=dtype)
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
