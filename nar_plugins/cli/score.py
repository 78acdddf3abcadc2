"""nar-score: BLEU and chrF of text, or of fairseq-generate's output, with sacreBLEU's signatures."""
import argparse
import sys
from pathlib import Path
from typing import List

from nar_plugins.measure.quality import score


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nar-score", description=__doc__)
    parser.add_argument("hypotheses", type=Path, help="one sentence a line, or what fairseq-generate wrote (D- or H- lines)")
    parser.add_argument("references", type=Path, nargs="*", help="one or more; default: the T- lines of the same output")
    return parser


def read(path: Path) -> List[str]:
    if not path.is_file():
        sys.exit(f"nar-score: no file {path}")
    return path.read_text(encoding="utf-8").splitlines()


def generated(lines: List[str], kind: str) -> List[str]:
    """The first line of this kind of every sentence, in the order of the sentences' numbers."""
    found = {}
    for line in lines:
        name, *fields = line.split("\t")
        if name.startswith(f"{kind}-") and name[2:].isdigit():
            found.setdefault(int(name[2:]), fields[-1] if fields else "")
    return [found[i] for i in sorted(found)]


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    lines = read(args.hypotheses)
    hypotheses = generated(lines, "D") or generated(lines, "H")
    references = [read(path) for path in args.references] or [generated(lines, "T")]
    try:
        quality = score(hypotheses or lines, references)
    except ValueError as error:
        sys.exit(f"nar-score: {error}")
    print(f"BLEU {quality.bleu:.2f}  {quality.bleu_signature}")
    print(f"chrF {quality.chrf:.2f}  {quality.chrf_signature}")


if __name__ == "__main__":
    main()
