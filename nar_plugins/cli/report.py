"""nar-report: one page of plots from training logs, from nar-bench and from generated text.

Example:

    fairseq-generate DATA ... --retain-iter-history > cmlm.out
    nar-report --log CMLM=cmlm.log --bench bench.json --generated CMLM=cmlm.out --out report

Writes PNGs and report.html, which holds them and needs no other file. Of --log: training curves. Of nar-bench's --json:
BLEU against speed, with its frontier, and against passes. Of the output of fairseq-generate: accepted lengths, length
errors, repetition. What was not given is left out, and the page says so.
"""

from pathlib import Path
from typing import List, Sequence, Tuple

from nar_plugins.cli.command import new_parser, one_line_errors, only_results
from nar_plugins.cli.curves import name_and_path
from nar_plugins.data.lines import read_lines
from nar_plugins.measure.curves import read_run
from nar_plugins.measure.generations import read_generation
from nar_plugins.measure.plots import check_matplotlib
from nar_plugins.measure.record import read_record
from nar_plugins.measure.report import PAGE, Material, write_report


def build_parser():
    parser = new_parser("nar-report", __doc__)
    parser.add_argument(
        "--log", nargs="+", default=[], metavar="[NAME=]FILE", help="logs of fairseq-train, with their names"
    )
    parser.add_argument("--bench", metavar="FILE", help="what nar-bench --json wrote")
    parser.add_argument(
        "--generated",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="outputs of fairseq-generate, with their names",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the page and its PNGs")
    return parser


def named_lines(arguments: Sequence[str], flag: str) -> List[Tuple[str, List[str]]]:
    """The name and the lines of each file; raises where two have one name."""
    named = [name_and_path(argument) for argument in arguments]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{flag}: two files are named {name}: give NAME=FILE")
    return [(name, read_lines(path)) for name, path in named]


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-report"), only_results():
        check_matplotlib("nar-report")
        material = Material(
            [read_run(*named) for named in named_lines(args.log, "--log")],
            None if args.bench is None else read_record(args.bench),
            [read_generation(*named) for named in named_lines(args.generated, "--generated")],
        )
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f"--out {args.out}: this is a file, and not a folder")
        args.out.mkdir(parents=True, exist_ok=True)
        for reason in write_report(args.out, material):
            print(f"left out: {reason}")
        print(args.out / PAGE)


if __name__ == "__main__":
    main()
