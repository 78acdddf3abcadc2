"""nar-bench: quality and speed of several checkpoints on one test set, side by side in one process.

Example (the first system is what the others' speed is divided by):

    nar-bench work/bin --system "AR greedy" ar.pt "--beam 1" --system "CMLM 10" cmlm.pt "--iterations 10"
"""
import argparse
import logging
import re
import shlex
import sys
import warnings
from pathlib import Path

import torch

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.measure.plots import Row, check_plot, quality_against_passes
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import System, sentences_per_second


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nar-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="binarised data")
    parser.add_argument("--system", nargs=3, action="append", required=True, metavar=("NAME", "CKPT", "FLAGS"),
                        help="a row: name, checkpoint(s), flags of fairseq-generate in one string")  # fmt: skip
    parser.add_argument("--flags", default="", help="flags of fairseq-generate for every row, in one string")
    parser.add_argument("--reference", type=Path, nargs="+", default=[], help="reference texts (default: the data's targets)")
    parser.add_argument("--batch-sizes", default="1,32", help="batch sizes to time")
    parser.add_argument("--sentences", default="100,0", help="how many sentences to time at each batch size (0: all)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each; the median counts")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep what every system says, in FOLDER/NAME.txt")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw BLEU against passes, a line through the systems whose "
                        "names differ in a last number only (.png, .pdf, .svg; needs matplotlib)")  # fmt: skip
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    logging.disable(logging.INFO)  # the table is the output; fairseq and hydra say a page for every system
    warnings.simplefilter("ignore")
    sizes, counts = ([int(x) for x in text.split(",")] for text in (args.batch_sizes, args.sentences))
    if len(sizes) != len(counts):
        sys.exit("nar-bench: --sentences needs one number for every one of --batch-sizes")
    try:
        if args.plot:
            check_plot(args.plot)  # now, not after the minutes of measuring
        names = [name for name, _, _ in args.system]
        if args.output and (len(set(names)) < len(names) or any("/" in name for name in names)):
            raise ValueError("--output needs names that differ and have no '/': they are names of files")
        systems = [
            System(name, path, args.data, [*shlex.split(args.flags), *shlex.split(flags)]) for name, path, flags in args.system
        ]
    except ValueError as error:
        sys.exit(f"nar-bench: {error}")
    references = [path.read_text(encoding="utf-8").splitlines() for path in args.reference] or [systems[0].reference()]

    outputs = [system.output() for system in systems]
    if args.output:
        keep(args.output, systems, outputs)
    qualities = [score(output.text, references) for output in outputs]
    speeds = [sentences_per_second(systems, size, count, args.repeats) for size, count in zip(sizes, counts)]
    table(systems, outputs, qualities, sizes, speeds)
    if args.plot:
        rows = [Row(s.name, o.passes, q.bleu, group(s.name)) for s, o, q in zip(systems, outputs, qualities)]
        quality_against_passes(rows, args.plot)


def keep(folder: Path, systems, outputs) -> None:
    """Write every system's best hypotheses, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for system, output in zip(systems, outputs):
        (folder / f"{system.name}.txt").write_text("\n".join([*output.text, ""]), encoding="utf-8")


def group(name: str) -> str:
    """A system's name without a number at its end: "adaptive 0.9" is one of "adaptive", "R = 4" one of "R"."""
    return re.sub(r"[ =]+-?\d+(\.\d+)?$", "", name)


def table(systems, outputs, qualities, sizes, speeds) -> None:
    """A Markdown table, with what is needed to compare it with another."""
    first = [f"{system.name}" for system in systems[:2]]
    masked = any(output.wasted is not None for output in outputs)  # a column only where it says something
    heads = ["system", "BLEU", "chrF", "passes", *["masks wasted"] * masked]
    heads += [f"{unit}, batch {size}" for unit in ("sent/s", "ms/sentence", *(f"x {name}" for name in first)) for size in sizes]
    rows = []
    for i, (system, output, quality) in enumerate(zip(systems, outputs, qualities)):
        ratios = [f"{speed[i] / speed[base]:.2f}" for base in range(len(first)) for speed in speeds]
        wasted = "-" if output.wasted is None else f"{output.wasted:.0%}"
        rows.append([system.name, f"{quality.bleu:.1f}", f"{quality.chrf:.1f}", f"{output.passes:.1f}", *[wasted] * masked,
                     *(f"{speed[i]:.1f}" for speed in speeds), *(f"{1000 / speed[i]:.1f}" for speed in speeds),
                     *ratios])  # fmt: skip
    widths = [max(len(row[c]) for row in [heads, *rows]) for c in range(len(heads))]
    print()
    for row in [heads, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")
    where = torch.cuda.get_device_name() if systems[0].cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"\nBLEU: {qualities[0].bleu_signature}\nchrF: {qualities[0].chrf_signature}\n{where}, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
