"""nar-bench: compare quality and speed of several checkpoints on one test set, side by side.

Example (speedups are relative to the first two systems):

    nar-bench work/bin --system "AR greedy" ar.pt "--beam 1" --system "CMLM 10" cmlm.pt "--iterations 10" \
        --flags "--cpu"

CTranslate2 decodes an autoregressive checkpoint as ct2:CKPT, converted in memory, in --compute-type float32 (the
default), int8 or another of its types:

    --system "CTranslate2, int8" ct2:ar.pt "--beam 1 --compute-type int8"

It needs the package ctranslate2 (pip install 'nar-plugins[ct2]'). It serves --beam, --lenpen, --unnormalized,
--max-len-a, --max-len-b, --min-len, --no-repeat-ngram-size and --unkpen inf; other options are refused.

A folder of nar-export onnx is run by ONNX Runtime as onnx:FOLDER (pip install 'nar-plugins[onnx]'):

    --system "CTC, ONNX Runtime" onnx:ctc-onnx ""

It serves --max-len-a, --max-len-b, --lenpen, --unnormalized and --dedup, of an iterative model --iterations,
--length-beam, --schedule and --confidence-threshold, and of a dag --dag-decode and --length-beam; its other options
were fixed by the export.

Such another engine works in a process of its own, in turn with the others, with as many threads: in one process they
would slow each other down.

A system that fails while it decodes, or for lack of memory, whose weights are NaN, or whose process dies, is a row with
the reason; the others go on, and the exit status is 1.

All systems must decode the same sentences into the same kind of text. So give --gen-subset, --prefix-size, the
languages, --remove-bpe, --bpe and --tokenizer in --flags; they are refused where they differ.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Sequence

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.cli.command import add_tokenize, new_parser, one_line_errors, only_results, shield_flags
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.data.lines import read_lines
from nar_plugins.data.whole_file import check_output, write_whole
from nar_plugins.measure.examples import Example, evenly_spaced, page
from nar_plugins.measure.machine import counts_memory, machine
from nar_plugins.measure.memory import measure_memory
from nar_plugins.measure.plots import (
    Point,
    check_plot,
    group,
    quality_against_passes,
    quality_against_speed,
    speed_panels,
)
from nar_plugins.measure.quality import check_references, score, warn_of_references
from nar_plugins.measure.record import record
from nar_plugins.measure.speed import Row, closing, crossover, decode_rows, load_rows, time_rows
from nar_plugins.measure.table import comparison, details


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-bench", __doc__)
    parser.add_argument("data", help="folder of binarised data")
    parser.add_argument(
        "--system",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CKPT", "FLAGS"),
        help="a system: its name, its checkpoint (or an ensemble, a.pt:b.pt; ct2:CKPT for CTranslate2, or "
        "onnx:FOLDER of nar-export onnx), and flags of fairseq-generate in one string, which may be empty",
    )
    parser.add_argument("--flags", default="", help="flags of fairseq-generate for all systems, in one string")
    parser.add_argument(
        "--reference",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reference texts, one line per sentence of the split (default: the data's targets, whose unknown words "
        "count as not translated)",
    )
    add_tokenize(parser, "zh, ja-mecab, ko-mecab or char if the data's target language needs it, else 13a")
    parser.add_argument("--batch-sizes", default="1,32", metavar="N[,N...]", help="batch sizes to time (default: 1,32)")
    parser.add_argument(
        "--sentences",
        metavar="N[,N...]",
        help="sentences to time: one number for all batch sizes or one for each; 0: all (default: 100 at batch size 1, "
        "all at others)",
    )
    parser.add_argument(
        "--repeats",
        default="3",
        metavar="N",
        help="timings of each system and batch size, of which the median is reported (default: 3)",
    )
    parser.add_argument(
        "--details",
        action="store_true",
        help="also print a table with quartiles of the speed, p50, p90 and p99 of a batch's latency, tokens per pass, "
        "the size of the weights, the processor and versions",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure every system's peak memory at the largest batch size, in a process of its own, and print "
        "--details (Linux only; some seconds more for each system)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is measured to FILE, as JSON")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write every system's output to FOLDER/NAME.txt")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot BLEU against decoder passes, with a line through systems whose names differ in the last number only "
        "(.png, .pdf, .svg; needs matplotlib)",
    )
    parser.add_argument(
        "--plot-speed",
        type=Path,
        metavar="FILE",
        help="plot BLEU against the speed relative to the first system, one panel for the smallest and one for the "
        "largest batch size",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        metavar="FILE",
        help="write a Markdown page of sentences, evenly spaced over the data, with source, references and every "
        "system's output",
    )
    parser.add_argument(
        "--examples-count", default="10", metavar="N", help="sentences of the page of --examples (default: 10)"
    )
    return parser


def parse_numbers(flag: str, text: str, minimum: int) -> List[int]:
    """The integers of a flag, separated by commas; raises for anything else, and below ``minimum``."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text}: whole numbers with commas between them, like 1,32") from None
    if min(numbers) < minimum:
        raise ValueError(f"{flag} {text}: at least {minimum}")
    return numbers


def parse_number(flag: str, text: str) -> int:
    """The positive integer of a flag; raises for anything else."""
    number, *more = parse_numbers(flag, text, 1)
    if more:
        raise ValueError(f"{flag} {text}: one number")
    return number


def timings(args) -> tuple:
    """(batch size, number of sentences) of every column, and the number of repeats."""
    sizes = parse_numbers("--batch-sizes", args.batch_sizes, 1)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"--batch-sizes {args.batch_sizes}: give every size once")
    repeats = parse_number("--repeats", args.repeats)
    if args.sentences is None:
        return [(size, 100 if size == 1 else 0) for size in sizes], repeats
    counts = parse_numbers("--sentences", args.sentences, 0)
    if len(counts) not in (1, len(sizes)):
        raise ValueError(
            f"--sentences {args.sentences}: one number for all --batch-sizes, or one for each ({len(sizes)})"
        )
    return list(zip(sizes, counts * len(sizes) if len(counts) == 1 else counts)), repeats


def main(argv=None) -> None:
    parser, given = build_parser(), sys.argv[1:] if argv is None else argv
    args = parser.parse_args(shield_flags(given, parser))
    with one_line_errors("nar-bench"), only_results():
        bench(args, given)


def bench(args, given: List[str]) -> None:
    """Run the comparison; every option is checked before the first sentence is decoded.

    Args:
        given: the command line, for --json.

    Raises:
        ValueError: an option, the data or a checkpoint cannot be used, or a system failed while it decoded.
    """
    columns, repeats = timings(args)
    for flag, path in (("--plot", args.plot), ("--plot-speed", args.plot_speed)):
        if path:
            check_plot(path, flag)
    examples_count = parse_number("--examples-count", args.examples_count)
    for flag, path in (("--examples", args.examples), ("--json", args.json)):
        if path:
            check_output(path, flag)
    if args.memory and not counts_memory():
        raise ValueError("--memory: only Linux counts a process's peak memory: leave it out")
    names = [name for name, _, _ in args.system]
    if args.output and (len(set(names)) < len(names) or any("/" in name for name in names)):
        raise ValueError("--output needs names that differ and have no '/': they are names of files")
    for name in names if args.output else ():
        check_output(args.output / f"{name}.txt", "--output", makes_folder=True)
    references = [read_lines(path) for path in args.reference]
    rows = load_rows(args.data, args.system, args.flags)
    with closing(rows):
        compare(args, given, rows, references, columns, repeats, examples_count)


def compare(args, given: List[str], rows: Sequence[Row], references: List[List[str]], columns, repeats, examples_count):
    """Decode, score and time the systems, and write the results.

    Args:
        given, columns, repeats: see ``bench`` and ``timings``. references: the texts of --reference.

    Raises:
        ValueError: see ``bench``.
    """
    first = next(row.system for row in rows if row.system is not None)
    metric = bleu_metric(args.tokenize, first.settings["target_lang"])
    references = references or [first.reference()]
    for path, lines in zip(args.reference, references):
        if len(lines) != len(first.dataset):
            raise ValueError(f"--reference {path} has {len(lines)} lines, the data have {len(first.dataset)} sentences")
    check_references(references, len(first.dataset))
    warn_of_references(references, metric)
    if args.output:
        make_folder(args.output)

    decode_rows(rows)
    decoded = [row for row in rows if row.output is not None]
    for row in decoded:
        row.quality = score(row.output.text, references, metric)
    if args.output:
        write_outputs(args.output, decoded)
    for size, count in columns:
        time_rows(rows, size, count, repeats)
    sizes, on = [size for size, _ in columns], machine(first.cuda)
    if args.memory:
        measure_memory(rows, args.data, max(sizes))
    print("\n" + comparison(rows, sizes, on))
    if args.details or args.memory:
        print("\n" + details(rows, on))
    for line in crossover(rows):
        print(line)
    if args.json:
        write_whole(args.json, record(rows, args.data, given, on))
    draw_plots(args, decoded, sizes)
    if args.examples and decoded:
        write_examples(args.examples, examples_count, decoded, references)
    failed = [row for row in rows if row.errors]
    if failed:
        reasons = ". ".join(f"{row.name}: {'; '.join(row.errors)}" for row in failed)
        raise ValueError(f"{len(failed)} of {len(rows)} systems failed. {reasons}")


def draw_plots(args, rows: Sequence[Row], sizes: List[int]) -> None:
    """Write the plots of --plot and --plot-speed, of the systems whose figures are complete."""
    rows = [row for row in rows if len(row.timings) == len(sizes)]
    points = [Point(row.name, row.output.passes, row.quality.bleu, group(row.name)) for row in rows]
    if args.plot and points:
        quality_against_passes(points, args.plot)
    if args.plot_speed and points:
        panels = speed_panels(points, sizes, [[row.speed(size) for row in rows] for size in sizes])
        quality_against_speed(panels, rows[0].name, args.plot_speed)


def write_examples(path: Path, count: int, rows: Sequence[Row], references: List[List[str]]) -> None:
    """Write the page of --examples."""
    examples, first = [], rows[0].system
    for number in evenly_spaced(count, len(first.dataset)):
        texts = [(row.name, row.output.text[number]) for row in rows]
        examples.append(Example(number, first.source(number), [lines[number] for lines in references], texts))
    write_whole(path, page(examples))


def make_folder(folder: Path) -> None:
    """Make the folder of --output; raise when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder}: {error.strerror}") from error


def write_outputs(folder: Path, rows: Sequence[Row]) -> None:
    """Write every system's best hypotheses to NAME.txt, one per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        write_whole(folder / f"{row.name}.txt", "\n".join([*row.output.text, ""]))


if __name__ == "__main__":
    main()
