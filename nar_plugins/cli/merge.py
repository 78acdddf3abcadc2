"""nar-merge: the outputs of fairseq-generate's shards as one output, in the order of the sentences.

Example (each shard may run on another machine):

    fairseq-generate DATA --path MODEL ... --num-shards 2 --shard-id 0 > 0.out
    fairseq-generate DATA --path MODEL ... --num-shards 2 --shard-id 1 > 1.out
    nar-merge 0.out 1.out | nar-score - reference.txt

A shard or a sentence that is missing, incomplete or there twice, and shards of different data, end with one line and
status 2.
"""

import sys
from pathlib import Path

from nar_plugins.cli.command import new_parser, one_line_errors
from nar_plugins.data.lines import read_lines
from nar_plugins.data.shards import merge
from nar_plugins.data.whole_file import check_output, write_whole


def build_parser():
    parser = new_parser("nar-merge", __doc__)
    parser.add_argument("outputs", nargs="+", metavar="OUT", help="the output of each shard, in any order")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument(
        "--sentences",
        type=int,
        metavar="N",
        help="sentences of the split (default: as the outputs of nar_translation say)",
    )
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-merge", status=2):
        if args.out is not None:
            check_output(args.out, "--out")
        for name in args.outputs:
            if args.outputs.count(name) > 1:
                raise ValueError(f"{name} is given twice")
        lines = merge({name: read_lines(name) for name in args.outputs}, args.sentences)
        text = "".join(f"{line}\n" for line in lines)
        if args.out is None:
            sys.stdout.buffer.write(text.encode("utf-8"))
        else:
            write_whole(args.out, text)


if __name__ == "__main__":
    main()
