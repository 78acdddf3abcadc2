"""nar-bench: quality and speed of several checkpoints on one test set, side by side in one process.

Example (the first system is what the others' speed is divided by):

    nar-bench work/bin --system "AR greedy" ar.pt "--beam 1" --system "CMLM 10" cmlm.pt "--iterations 10" \
        --flags "--cpu"

All systems decode the same sentences: --gen-subset, --prefix-size, languages and what makes text of the tokens
(--remove-bpe, --bpe, --tokenizer) are refused where they differ, and belong into --flags.
"""

import argparse
import sys
from pathlib import Path
from typing import List

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.cli.command import add_tokenize, new_parser, one_line_errors, only_results
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.data.lines import read_lines
from nar_plugins.measure.plots import Row, check_plot, group, quality_against_passes
from nar_plugins.measure.quality import check_references, score, warn_of_references
from nar_plugins.measure.speed import load_systems, sentences_per_second
from nar_plugins.measure.table import comparison


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-bench", __doc__)
    parser.add_argument("data", help="binarised data")
    parser.add_argument(
        "--system",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "CKPT", "FLAGS"),
        help="a row: name, checkpoint(s), flags of fairseq-generate in one string (may be empty)",
    )
    parser.add_argument("--flags", default="", help="flags of fairseq-generate for every row, in one string")
    parser.add_argument(
        "--reference",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reference texts, a line for every sentence "
        "of the split (default: the data's targets, in which unknown words count as missed)",
    )
    add_tokenize(parser, "zh, ja-mecab, ko-mecab or char where the data's target language needs one, else 13a")
    parser.add_argument("--batch-sizes", default="1,32", metavar="N[,N...]", help="batch sizes to time (default: 1,32)")
    parser.add_argument(
        "--sentences",
        metavar="N[,N...]",
        help="how many sentences to time: one number for all batch sizes "
        "or one for each; 0: all (default: 100 at batch size 1, all at others)",
    )
    parser.add_argument("--repeats", default="3", metavar="N", help="timings of each; the median counts (default: 3)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep what every system says, in FOLDER/NAME.txt")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw BLEU against passes, a line through the systems whose "
        "names differ in a last number only (.png, .pdf, .svg; needs matplotlib)",
    )
    return parser


def values_shielded(argv: List[str], parser: argparse.ArgumentParser) -> List[str]:
    """The command line with a blank before flags of fairseq-generate that are one word, like "--cpu".

    argparse takes a word with a dash and without a blank for an option of its own, even between quotes.
    """
    words = list(argv)
    for i, word in enumerate(argv):
        at = i + {"--flags": 1, "--system": 3}.get(word, len(argv))
        if at < len(argv) and argv[at].startswith("-") and argv[at] not in parser._option_string_actions:
            words[at] = f" {argv[at]}"
    return words


def numbers(flag: str, text: str, least: int) -> List[int]:
    """The numbers of a flag; raises where one is none, or below the least."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} {text}: whole numbers with commas between them, like 1,32") from None
    if min(found) < least:
        raise ValueError(f"{flag} {text}: at least {least}")
    return found


def timings(args) -> List[tuple]:
    """(batch size, how many sentences) of every column, and the number of repeats."""
    sizes, (repeats, *more) = numbers("--batch-sizes", args.batch_sizes, 1), numbers("--repeats", args.repeats, 1)
    if more:
        raise ValueError(f"--repeats {args.repeats}: one number")
    if args.sentences is None:
        return [(size, 100 if size == 1 else 0) for size in sizes], repeats
    counts = numbers("--sentences", args.sentences, 0)
    if len(counts) not in (1, len(sizes)):
        raise ValueError(
            f"--sentences {args.sentences}: one number for all --batch-sizes, or one for each ({len(sizes)})"
        )
    return list(zip(sizes, counts * len(sizes) if len(counts) == 1 else counts)), repeats


def main(argv=None) -> None:
    parser = build_parser()
    args = parser.parse_args(values_shielded(sys.argv[1:] if argv is None else argv, parser))
    with one_line_errors("nar-bench"), only_results():
        bench(args)


def bench(args) -> None:
    """Everything that can be wrong is found before the first sentence is decoded; a ValueError says what."""
    columns, repeats = timings(args)
    if args.plot:
        check_plot(args.plot)
    names = [name for name, _, _ in args.system]
    if args.output and (len(set(names)) < len(names) or any("/" in name for name in names)):
        raise ValueError("--output needs names that differ and have no '/': they are names of files")
    references = [read_lines(path) for path in args.reference]
    systems = load_systems(args.data, args.system, args.flags)
    metric = bleu_metric(args.tokenize, systems[0].settings["target_lang"])
    references = references or [systems[0].reference()]
    for path, lines in zip(args.reference, references):
        if len(lines) != len(systems[0].dataset):
            raise ValueError(
                f"--reference {path} has {len(lines)} lines, the data have {len(systems[0].dataset)} sentences"
            )
    check_references(references, len(systems[0].dataset))
    warn_of_references(references, metric)
    if args.output:
        writable(args.output)

    outputs = [system.output() for system in systems]
    if args.output:
        keep(args.output, systems, outputs)
    qualities = [score(output.text, references, metric) for output in outputs]
    speeds = [sentences_per_second(systems, size, count, repeats) for size, count in columns]
    print("\n" + comparison(systems, outputs, qualities, [size for size, _ in columns], speeds))
    if args.plot:
        rows = [Row(s.name, o.passes, q.bleu, group(s.name)) for s, o, q in zip(systems, outputs, qualities)]
        quality_against_passes(rows, args.plot)


def writable(folder: Path) -> None:
    """Make the folder; raise where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder}: {error.strerror}") from error


def keep(folder: Path, systems, outputs) -> None:
    """Write every system's best hypotheses, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for system, output in zip(systems, outputs):
        (folder / f"{system.name}.txt").write_text("\n".join([*output.text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
