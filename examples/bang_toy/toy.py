"""A toy task with two right answers, on which the decoding policies of BANG differ.

    python examples/bang_toy/toy.py make FOLDER
    python examples/bang_toy/toy.py table FOLDER NAME=OUTPUT [NAME=OUTPUT ...]

A source is 4 to 6 of the symbols a0 .. a11. Its target is the source itself or, with probability 1/2, the source with
every a replaced by b: only the first token is uncertain, all others follow from it. A model that predicts all tokens in
one pass mixes both targets.

``table`` reads outputs of ``fairseq-generate --print-step``. For each it prints the share of valid hypotheses (one of
the two targets), the mean number of decoder passes, and how many hypotheses equal those of the first output.
"""

import argparse
import random
from pathlib import Path

SYMBOLS, SIZES = 12, {"train": 20000, "valid": 200, "test": 200}


def make(folder: Path) -> None:
    """Write the three splits."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for split, size in SIZES.items():
        pairs = []
        for _ in range(size):
            numbers = [draw.randrange(SYMBOLS) for _ in range(draw.randint(4, 6))]
            pairs.append((sentence("a", numbers), sentence(draw.choice("ab"), numbers)))
        for side, lines in zip(("src", "tgt"), zip(*pairs)):
            (folder / f"{split}.{side}").write_text("\n".join(lines) + "\n")


def sentence(letter: str, numbers) -> str:
    return " ".join(f"{letter}{number}" for number in numbers)


def read(output: Path) -> dict:
    """Number of the sentence -> source, hypothesis, passes; one pass per token where fairseq prints none."""
    lines = {}
    for line in output.read_text(encoding="utf-8").split("\n"):
        kind, _, rest = line.partition("-")
        if kind in ("S", "H", "I") and "\t" in rest:
            number, *fields = rest.split("\t")
            lines.setdefault(int(number), {})[kind] = fields[-1]
    return {n: (line["S"], line["H"], int(line.get("I", len(line["H"].split()) + 1))) for n, line in lines.items()}


def table(folder: Path, outputs) -> None:
    """Print a Markdown table, one line per policy."""
    print("| policy | valid | passes | as the first row |\n|---|---|---|---|")
    first = None
    for name, path in (output.rsplit("=", 1) for output in outputs):
        results = read(Path(path))
        first = first or results
        valid = sum(hypothesis in (source, source.replace("a", "b")) for source, hypothesis, _ in results.values())
        passes = sum(steps for *_, steps in results.values()) / len(results)
        equal = sum(results[n][1] == first[n][1] for n in first)
        print(f"| {name} | {100 * valid / len(results):.1f} % | {passes:.2f} | {equal} of {len(results)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["make", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("outputs", nargs="*")
    args = parser.parse_args()
    make(args.folder) if args.job == "make" else table(args.folder, args.outputs)


if __name__ == "__main__":
    main()
