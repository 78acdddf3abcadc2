"""nar-wordpiece: split raw text into BERT's sub-words for fairseq-preprocess, or join them; one line in, one out.

Example:

    nar-wordpiece encode --vocab vocab.txt < raw.txt > pieces.txt
"""

import argparse
import sys
from argparse import Namespace

from nar_plugins.cli.command import new_parser, one_line_errors
from nar_plugins.data.dictionary import join_pieces
from nar_plugins.data.wordpiece import WordPiece


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-wordpiece", __doc__)
    parser.add_argument("job", choices=["encode", "decode"], help="split text into sub-words, or join them")
    parser.add_argument(
        "--vocab",
        metavar="FILE",
        help="BERT's vocab.txt, or the dictionary that nar-convert bert-vocab makes from it (for encode)",
    )
    parser.add_argument("--cased", action="store_true", help="keep case and accents; for a cased vocabulary")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    job = join_pieces
    if args.job == "encode":
        if not args.vocab:
            sys.exit("nar-wordpiece: encode needs --vocab")
        with one_line_errors("nar-wordpiece"):
            job = WordPiece(Namespace(wordpiece_vocab=args.vocab, wordpiece_cased=args.cased)).encode
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # only \n ends a line, as for wc -l
    try:
        for line in sys.stdin:
            sys.stdout.write(job(line.rstrip("\n")) + "\n")
    except UnicodeDecodeError as error:
        sys.exit(f"nar-wordpiece: the text is not UTF-8 ({error.reason}): convert it first")


if __name__ == "__main__":
    main()
