"""Accuracy of generated labels: python examples/classification/accuracy.py OUTPUT LABELS

OUTPUT is output of fairseq-generate, or one label a line; "-" is standard input. Also printed: the accuracy of always
predicting the most frequent label, and the share of outputs that are not a label.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import List, NamedTuple

from nar_plugins.data.generated import best_hypotheses
from nar_plugins.data.lines import read_lines


class Counts(NamedTuple):
    """Numbers of outputs, out of ``total``."""

    right: int
    most_frequent: int  # what the most frequent label, always predicted, would get right
    no_label: int
    total: int


def count(predicted: List[str], labels: List[str]) -> Counts:
    known = Counter(labels)
    right = sum(prediction == label for prediction, label in zip(predicted, labels))
    return Counts(right, known.most_common(1)[0][1], sum(p not in known for p in predicted), len(labels))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("labels", type=Path)
    args = parser.parse_args(argv)
    try:
        labels = read_lines(args.labels)
        predicted = best_hypotheses(read_lines(args.output), str(args.output))
    except ValueError as error:
        sys.exit(f"accuracy.py: {error}")
    if len(predicted) != len(labels) or not labels:
        sys.exit(f"accuracy.py: {len(predicted)} outputs but {len(labels)} labels")
    right, most_frequent, no_label, total = count(predicted, labels)
    print(
        f"{args.output.name}: accuracy {right / total:.1%} ({right} of {total}), always the most frequent label "
        f"{most_frequent / total:.1%}, no label {no_label / total:.1%}"
    )


if __name__ == "__main__":
    main()
