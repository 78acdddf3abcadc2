"""Labelled text for classification as generation.

    python examples/classification/labelled.py questions SQUAD_QG OUT     # {train,valid,test}.tsv
    python examples/classification/labelled.py split FILE.tsv PREFIX      # PREFIX.text and PREFIX.label

A TSV has a label, a tab and a text in every line. "questions" makes a data set of SQuAD's questions, always the same:
the label is the question word at the beginning (what, who, how, when, which, where, why), the text is the rest.
"""

import argparse
import gzip
import lzma
import sys
from pathlib import Path

KINDS = ("what", "who", "how", "when", "which", "where", "why")


def lines_of(folder: Path, name: str) -> list:
    """The lines of a file, plain, .gz or .xz."""
    for end, opened in (("", open), (".gz", gzip.open), (".xz", lzma.open)):
        path = folder / f"{name}{end}"
        if path.is_file():
            with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
                return [line.rstrip("\n") for line in file]
    raise ValueError(
        f"'{folder}' has no {name} (plain, .gz or .xz): give SQuAD's folder, or your own TSVs to prepare.sh"
    )


def questions(folder: Path, out: Path) -> None:
    """Write {train,valid,test}.tsv."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        parts = [line.partition(" ") for line in lines_of(folder, f"{name}.question")]
        pairs = [(word, rest) for word, _, rest in parts if word in KINDS and rest]
        (out / f"{name}.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in pairs), encoding="utf-8")
        print(f"{out / name}.tsv: {len(pairs)} of {len(parts)} questions")


def split(tsv: Path, prefix: str) -> None:
    """Write texts and labels of a TSV; ValueError names the first line that is not one."""
    texts, labels = [], []
    for number, line in enumerate(lines_of(tsv.parent, tsv.name), 1):
        label, tab, text = line.partition("\t")
        if not tab or not label.strip() or not text.strip():
            raise ValueError(f"{tsv}, line {number} is not 'label<TAB>text'")
        labels.append(label.strip())
        texts.append(text.strip())
    for side, lines in (("text", texts), ("label", labels)):
        Path(f"{prefix}.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["questions", "split"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out")
    args = parser.parse_args(argv)
    try:
        questions(args.source, Path(args.out)) if args.job == "questions" else split(args.source, args.out)
    except ValueError as error:
        sys.exit(f"labelled.py: {error}")


if __name__ == "__main__":
    main()
