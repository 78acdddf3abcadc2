"""How many labels are right: python examples/classification/accuracy.py OUTPUT LABELS

OUTPUT is what fairseq-generate wrote, or one label a line; "-" is standard input. Printed beside it: what always saying
the most frequent label would give, and how many outputs are no label at all.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import List, NamedTuple

from nar_plugins.cli.score import generated
from nar_plugins.data.lines import read_lines


class Counts(NamedTuple):
    """Of ``total`` outputs."""

    right: int
    most_frequent: int  # right answers of the one who always says the most frequent label
    no_label: int
    total: int


def count(said: List[str], labels: List[str]) -> Counts:
    known = Counter(labels)
    right = sum(s == label for s, label in zip(said, labels))
    return Counts(right, known.most_common(1)[0][1], sum(s not in known for s in said), len(labels))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("labels", type=Path)
    args = parser.parse_args(argv)
    try:
        lines, labels = read_lines(args.output), read_lines(args.labels)
    except ValueError as error:
        sys.exit(f"accuracy.py: {error}")
    said = generated(lines, "D") or generated(lines, "H") or lines
    if len(said) != len(labels) or not labels:
        sys.exit(f"accuracy.py: {len(said)} outputs but {len(labels)} labels")
    right, most_frequent, no_label, total = count(said, labels)
    print(
        f"{args.output.name}: accuracy {right / total:.1%} ({right} of {total}), always the most frequent label "
        f"{most_frequent / total:.1%}, no label {no_label / total:.1%}"
    )


if __name__ == "__main__":
    main()
