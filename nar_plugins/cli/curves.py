"""nar-curves: draw training loss, validation loss and validation BLEU of one or more runs against updates.

Example:

    fairseq-train DATA ... --eval-bleu 2>&1 | tee cmlm.log
    nar-curves AR=ar.log CMLM=cmlm.log --out curves.png

Reads the logs of fairseq-train: --log-format simple or json, or the default where the log is no terminal; --log-file's,
too. Of a terminal's log, with progress bars, the training loss is the mean of every epoch.
"""

from pathlib import Path
from typing import Tuple

from nar_plugins.cli.command import new_parser, one_line_errors, only_results
from nar_plugins.data.lines import read_lines
from nar_plugins.measure.curves import plot_runs, read_run
from nar_plugins.measure.plots import check_plot


def build_parser():
    parser = new_parser("nar-curves", __doc__)
    parser.add_argument("logs", nargs="+", metavar="[NAME=]LOG", help="the log of a run, and its name in the plot")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the plot (.png, .pdf, .svg; needs matplotlib)"
    )
    return parser


def name_and_path(argument: str) -> Tuple[str, str]:
    """The name of a run and its log, of ``NAME=LOG`` or ``LOG``, whose name is that of the file."""
    name, equals, path = argument.partition("=")
    return (name, path) if equals and not Path(argument).exists() else (argument, argument)


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-curves"), only_results():
        check_plot(args.out, "--out")
        runs = [read_run(name, read_lines(path)) for name, path in map(name_and_path, args.logs)]
        plot_runs(runs, args.out)


if __name__ == "__main__":
    main()
