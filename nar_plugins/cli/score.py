"""nar-score: compute BLEU and chrF of text or of fairseq-generate's output, with sacreBLEU's signatures.

Examples:

    nar-score output.txt reference.txt
    fairseq-generate DATA --path MODEL ... | nar-score
    fairseq-generate DATA --path MODEL ... | nar-score - reference.zh --target-lang zh

A line ends at \\n only, and a byte order mark is removed. No hypothesis matches <unk> in a reference.
"""

import argparse
import sys
from typing import List

from nar_plugins.cli.command import add_tokenize, new_parser, one_line_errors
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.data.lines import STDIN, read_lines
from nar_plugins.measure.quality import score, warn_of_references

FIELDS_BEFORE_TEXT = {"S": 1, "T": 1, "H": 2, "D": 2}  # the sentence's number; for hypotheses also the score


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-score", __doc__)
    parser.add_argument(
        "hypotheses",
        nargs="?",
        default=STDIN,
        help="text with one sentence per line, or the output of fairseq-generate, of which the best D- or H- line of "
        "each sentence is scored; - or nothing: standard input",
    )
    parser.add_argument(
        "references", nargs="*", help="one or more reference texts (default: the T- lines of fairseq-generate's output)"
    )
    add_tokenize(parser, "that of --target-lang")
    parser.add_argument(
        "--target-lang",
        metavar="CODE",
        help="language of the text, which sets the tokeniser: zh for zh, ja-mecab for ja, ko-mecab for ko, char for "
        "th, km, lo and my, else 13a, which separates words at blanks",
    )
    return parser


def generated(lines: List[str], kind: str) -> List[str]:
    """The text of every sentence's first line of a kind, in the order of the sentences' numbers.

    Args:
        kind: S, T, H or D, the first letter of the lines of ``fairseq-generate``.
    """
    texts, before = {}, FIELDS_BEFORE_TEXT[kind]
    for line in lines:
        name, *fields = line.split("\t", before)  # the text itself may contain tabs
        if name.startswith(f"{kind}-") and name[2:].isdigit():
            texts.setdefault(int(name[2:]), fields[before - 1] if len(fields) == before else "")
    return [texts[i] for i in sorted(texts)]


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    if args.hypotheses == STDIN and sys.stdin.isatty():
        sys.exit("nar-score: no hypotheses: give a file, or pipe them in")
    if [args.hypotheses, *args.references].count(STDIN) > 1:
        sys.exit("nar-score: - is standard input, which can be read once")
    with one_line_errors("nar-score"):
        metric = bleu_metric(args.tokenize, args.target_lang)
        lines = read_lines(args.hypotheses)
        hypotheses = generated(lines, "D") or generated(lines, "H") or lines
        references = [read_lines(path) for path in args.references] or [generated(lines, "T")]
        if hypotheses and not any(references):
            source = ", ".join(args.references) or "the hypotheses are no output of fairseq-generate with T- lines"
            raise ValueError(f"no references ({source}): give a file of them")
        quality = score(hypotheses, references, metric)
    warn_of_references(references, metric)
    print(f"BLEU {quality.bleu:.2f}  {quality.bleu_signature}")
    print(f"chrF {quality.chrf:.2f}  {quality.chrf_signature}")


if __name__ == "__main__":
    main()
