"""nar-align: align the words of binarised text, and write the fertilities that `nat` is trained with.

This example writes work/bin/train.en-de.fert, and the same for valid and test:

    nar-align work/bin -s en -t de
"""

import argparse
import logging
import sys

from fairseq.utils import split_paths

from nar_plugins.cli.command import new_parser, one_line_errors
from nar_plugins.corpora.align import Job, align
from nar_plugins.corpora.aligner import MAX_LINKS


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-align", __doc__)
    parser.add_argument(
        "data",
        metavar="DATA-BIN",
        help="folder of fairseq-preprocess, or several joined by colons; SPLIT.SRC-TGT.fert is written there",
    )
    parser.add_argument("-s", "--source-lang", metavar="SRC", help="source language (default: from the file names)")
    parser.add_argument("-t", "--target-lang", metavar="TGT", help="target language (default: from the file names)")
    parser.add_argument(
        "--splits", help="splits to align, such as train,valid (default: all with both sides: train, valid, valid1 ...)"
    )
    parser.add_argument(
        "--alignments",
        nargs="+",
        metavar="FILE",
        help="links of another aligner in Pharaoh's format, such as 0-0 1-2, for the sub-words of the binarised text: "
        "one file for each of --splits, in that order",
    )
    parser.add_argument(
        "--iterations", type=int, help="EM iterations of the aligner over train, train1 ... (default: 5)"
    )
    parser.add_argument(
        "--most-links",
        type=int,
        metavar="N",
        help="train the aligner on a subset of the pairs with about N possible links (source times target length), if "
        f"there are more (default: {MAX_LINKS}, which takes 5 GB)",
    )
    return parser


def job_of(args) -> Job:
    settings = {"iterations": args.iterations, "most_links": args.most_links}
    return Job(
        list(dict.fromkeys(split_paths(args.data))),
        args.source_lang,
        args.target_lang,
        args.splits.split(",") if args.splits else (),
        args.alignments or (),
        {name: value for name, value in settings.items() if value is not None},
    )


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    logging.getLogger("fairseq.data.data_utils").setLevel(logging.WARNING)  # else it logs every file twice
    with one_line_errors("nar-align"):
        for message in align(job_of(args)):
            if message.warning:
                print(f"nar-align: warning: {message.text}", file=sys.stderr)
            else:
                print(message.text)


if __name__ == "__main__":
    main()
