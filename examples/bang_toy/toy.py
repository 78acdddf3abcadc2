"""A task with two right answers, which tells the ways of decoding apart.

    python examples/bang_toy/toy.py make FOLDER
    python examples/bang_toy/toy.py table FOLDER NAME=OUTPUT [NAME=OUTPUT ...]

A source is 4 to 6 of the words a0 .. a11. Its target is the same words or, as likely, their twins b0 .. b11: only the
first token is uncertain, all others follow from it. Predicted all at once, the tokens mix both targets.

``table`` prints for every output of ``fairseq-generate --print-step`` how many of its outputs are one of the two, the
passes of the decoder, and how many outputs are equal to those of the first.
"""

import argparse
import random
from pathlib import Path

WORDS, SIZES = 12, {"train": 20000, "valid": 200, "test": 200}


def make(folder: Path) -> None:
    """Write the three splits."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for split, size in SIZES.items():
        pairs = []
        for _ in range(size):
            numbers = [draw.randrange(WORDS) for _ in range(draw.randint(4, 6))]
            pairs.append((spoken("a", numbers), spoken(draw.choice("ab"), numbers)))
        for side, lines in zip(("src", "tgt"), zip(*pairs)):
            (folder / f"{split}.{side}").write_text("\n".join(lines) + "\n")


def spoken(letter: str, numbers) -> str:
    return " ".join(f"{letter}{number}" for number in numbers)


def read(output: Path) -> dict:
    """Number of the sentence -> source, output and passes; where fairseq prints no passes, one a token."""
    found = {}
    for line in output.read_text(encoding="utf-8").split("\n"):
        kind, _, rest = line.partition("-")
        if kind in ("S", "H", "I") and "\t" in rest:
            number, *fields = rest.split("\t")
            found.setdefault(int(number), {})[kind] = fields[-1]
    return {n: (one["S"], one["H"], int(one.get("I", len(one["H"].split()) + 1))) for n, one in found.items()}


def table(folder: Path, outputs) -> None:
    """Print what the policies did, as a Markdown table."""
    print("| policy | valid | passes | as the first row |\n|---|---|---|---|")
    first = None
    for name, path in (one.rsplit("=", 1) for one in outputs):
        found = read(Path(path))
        first = first or found
        valid = sum(out in (source, source.replace("a", "b")) for source, out, _ in found.values())
        passes = sum(steps for *_, steps in found.values()) / len(found)
        equal = sum(found[n][1] == first[n][1] for n in first)
        print(f"| {name} | {100 * valid / len(found):.1f} % | {passes:.2f} | {equal} of {len(found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["make", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("outputs", nargs="*")
    args = parser.parse_args()
    make(args.folder) if args.job == "make" else table(args.folder, args.outputs)


if __name__ == "__main__":
    main()
