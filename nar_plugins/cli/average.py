"""nar-average: average the parameters of several checkpoints of a run.

    nar-average --best 5 cmlm --out cmlm/average.pt     # by --best-checkpoint-metric, as in Mask-Predict's paper
    nar-average --last 5 ar --out ar/average.pt         # as in Vaswani et al. 2017
    nar-average a.pt b.pt c.pt --out average.pt

--best needs a training with --keep-best-checkpoints N, or one that keeps the checkpoint of every epoch (fairseq's
default); --last needs --keep-last-epochs N, or --save-interval-updates with --keep-interval-updates N.
"""

import argparse
from pathlib import Path
from typing import List

from nar_plugins.checkpoint_io.average import average, choose
from nar_plugins.cli.command import new_parser, one_line_errors


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-average", __doc__)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="checkpoints; with --best or --last one folder, the training's --save-dir",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--best", type=int, metavar="N", help="average the folder's N best checkpoints by validation score"
    )
    which.add_argument("--last", type=int, metavar="N", help="average the folder's last N checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the averaged checkpoint")
    return parser


def checkpoints_of(args) -> List[Path]:
    """The checkpoints that the command line names, or that --best or --last choose."""
    if args.best is None and args.last is None:
        if any(path.is_dir() for path in args.paths):
            raise ValueError("a folder needs --best N or --last N")
        return args.paths
    option, number = ("--best", args.best) if args.best is not None else ("--last", args.last)
    if number < 2:
        raise ValueError(f"{option} {number}: an average needs two checkpoints at least")
    if len(args.paths) != 1 or not args.paths[0].is_dir():
        raise ValueError(f"{option} {number} takes one folder, the --save-dir of a training")
    return choose(args.paths[0], args.last, args.best)


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-average"):
        paths = checkpoints_of(args)
        average(paths, args.out)
    print(f"{args.out}: the mean of {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
