"""Split sentence pairs into train, valid and test, so that no sentence of either language is in two parts.

python examples/tatoeba_en_de/split.py PAIRS OUT

PAIRS has an English and a German sentence per line, with a tab between them; what follows a second tab is left out. A
sentence often has several translations: pairs that share a sentence, directly or through others, stay together. Two
hundredths of the pairs each validate and test; groups of more than 20 pairs are for training.
"""

import random
import sys
from pathlib import Path
from typing import Dict, List, Tuple

Pair = Tuple[str, str]
SHARE, LARGEST = 50, 20  # one of so many pairs is held out for each part; pairs of a group that may be held out


def groups(pairs: List[Pair]) -> List[List[Pair]]:
    """The pairs, in the groups that share no sentence with one another; in order of their first pairs."""
    parent: Dict[Tuple[int, str], Tuple[int, str]] = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for english, german in pairs:
        parent[root((1, german))] = root((0, english))
    out: Dict[Tuple[int, str], List[Pair]] = {}
    for pair in pairs:
        out.setdefault(root((0, pair[0])), []).append(pair)
    return list(out.values())


def split(pairs: List[Pair], seed: int = 1) -> Dict[str, List[Pair]]:
    """The parts: train, valid and test."""
    pairs = list(dict.fromkeys(pairs))
    wanted, parts = len(pairs) // SHARE, {"train": [], "valid": [], "test": []}
    shuffled = groups(pairs)
    random.Random(seed).shuffle(shuffled)
    for group in shuffled:
        small = len(group) <= LARGEST
        part = next((name for name in ("valid", "test") if small and len(parts[name]) < wanted), "train")
        parts[part] += group
    return parts


def read_pairs(path: Path) -> List[Pair]:
    pairs = []
    with open(path, encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) < 2 or not all(fields[:2]):
                raise ValueError(f"{path}, line {number}: no English and German sentence with a tab between them")
            pairs.append((fields[0], fields[1]))
    return pairs


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("split.py: give PAIRS and OUT")
    try:
        parts = split(read_pairs(Path(sys.argv[1])))
        for name, pairs in parts.items():
            for column, language in enumerate(("en", "de")):
                text = "".join(f"{pair[column]}\n" for pair in pairs)
                (Path(sys.argv[2]) / f"{name}.{language}").write_bytes(text.encode("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"split.py: {error}")
    print(", ".join(f"{name} {len(pairs)}" for name, pairs in parts.items()), "pairs")


if __name__ == "__main__":
    main()
