"""nar-align: word alignments of binarised text, and from them the fertilities that `nat` is trained with.

Example, which writes work/bin/train.en-de.fert and the same for valid and test:

    nar-align work/bin -s en -t de
"""

import argparse
import logging
import os
import re
import sys
from typing import List, NamedTuple, Tuple

import numpy as np
from fairseq.data import Dictionary
from fairseq.utils import split_paths

from nar_plugins.corpora.align import (
    MOST_LINKS,
    WARN_UNLINKED,
    Aligner,
    Text,
    check_links,
    fertilities,
    load_text,
    one_each,
    parse_links,
    unlinked,
)
from nar_plugins.data.checks import check_files, check_languages, infer_languages
from nar_plugins.data.dictionary import load_dictionary, not_words
from nar_plugins.data.fertility import fertility_path, write_fertilities

SPLIT = re.compile(r"(train|valid|test)(\d*)")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nar-align", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        metavar="DATA-BIN",
        help="folder of fairseq-preprocess, or several joined by colons; receives SPLIT.SRC-TGT.fert",
    )
    parser.add_argument("-s", "--source-lang", metavar="SRC", help="source language (default: as the data are named)")
    parser.add_argument("-t", "--target-lang", metavar="TGT", help="target language (default: as the data are named)")
    parser.add_argument(
        "--splits", help="such as train,valid (default: every train, valid, valid1 ... with both sides)"
    )
    parser.add_argument(
        "--alignments",
        nargs="+",
        metavar="FILE",
        help="links like 0-0 1-2, made elsewhere of the very text that was binarised (of its sub-words): one "
        "file for each of --splits, in that order",
    )
    parser.add_argument("--iterations", type=int, help="of the aligner, over train (and train1 ...) (default 5)")
    parser.add_argument(
        "--most-links",
        type=int,
        metavar="N",
        help=f"of a larger train, pairs with N possible links (default {MOST_LINKS}: 5 GB)",
    )
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    logging.getLogger("fairseq.data.data_utils").setLevel(logging.WARNING)  # says every file twice
    try:
        align(args)
    except (ValueError, OSError) as error:
        sys.exit(f"nar-align: {error}")


class Split(NamedTuple):
    folder: str
    name: str  # train, valid1 ...


def align(args) -> None:
    folders = list(dict.fromkeys(split_paths(args.data)))
    for folder in folders:
        if not os.path.isdir(folder):
            raise ValueError(f"no data folder '{folder}': binarise the text with fairseq-preprocess first")
    source, target = languages(args, folders[0])
    found = [Split(folder, name) for folder in folders for name in find_splits(folder, source, target)]
    splits = found or [Split(folders[0], "train")]
    if args.splits:  # as fairseq, in the first folder; and what the others have of them
        wanted = [Split(folder, name) for folder in folders for name in args.splits.split(",")]
        splits = [split for split in wanted if split.folder == folders[0] or split in found]
    settings = {"iterations": args.iterations, "most_links": args.most_links}
    settings = {name: value for name, value in settings.items() if value is not None}

    def load(split: Split) -> List[Text]:
        return load_pair(split.folder, split.name, source, target, folders[0])

    if args.alignments:
        if settings:
            raise ValueError(
                f"--{next(iter(settings)).replace('_', '-')} is the aligner's: leave it out with --alignments"
            )
        if len(args.alignments) != len(splits):
            names = [split.name if len(folders) == 1 else os.path.join(*split) for split in splits]
            raise ValueError(
                f"{len(args.alignments)} of --alignments for {len(splits)} splits ({', '.join(names)}): name "
                "the splits that the files are of with --splits"
            )
        texts = {split: load(split) for split in splits}
        dictionaries = load_dictionaries(folders[0], source, target)
        links, notes = read_files(args.alignments, [texts[split] for split in splits], dictionaries)
    else:
        learn = [split for split in found if split.name.startswith("train")] or [Split(folders[0], "train")]
        texts = {split: load(split) for split in dict.fromkeys([*learn, *splits])}
        aligner = Aligner(progress=True)
        sides = [Text(*map(np.concatenate, zip(*side))) for side in zip(*(texts[split] for split in learn))]
        used = aligner.train(*sides, **settings)
        names = ", ".join(dict.fromkeys(split.name for split in learn))
        print(f"aligner: {used:,} of {len(sides[0].sizes):,} pairs of {names}, lambda {aligner.tension:.1f}")
        links, notes = [aligner.align(*texts[split]) for split in splits], [""] * len(splits)
    for split, linked, note in zip(splits, links, notes):
        left, right = (text.sizes for text in texts[split])
        path, counts = fertility_path(*split, source, target), fertilities(linked, left, right)
        write_fertilities(path, counts, left + 1)
        print(f"{path}: {len(left):,} lines; {summary(np.delete(counts, (left + 1).cumsum() - 1))}{note}")


def read_files(files: List[str], texts: List[List[Text]], dictionaries: List[Dictionary]) -> Tuple[list, List[str]]:
    """The links of every file, one a target word, and what is to be said of them. Nothing is said before all are
    right.
    """
    symbols = tuple(dictionary.symbols for dictionary in dictionaries)
    given = [parse_links(file, *(text.sizes for text in pair)) for file, pair in zip(files, texts)]
    for file, pair, links in zip(files, texts, given):
        check_links(links, *pair, symbols, file)
    links, notes = [], []
    for file, pair, found in zip(files, texts, given):
        sizes = [text.sizes for text in pair]
        links.append(one_each(found, *sizes))
        share = unlinked(found, *sizes)
        notes.append(f"; target tokens without a link: {share:.1%}")
        if share > WARN_UNLINKED:
            print(
                f"nar-align: warning: {file} has no link for {share:.0%} of the target tokens, which take their "
                "neighbour's: "
                "an aligner's links of one direction leave fewer than an intersection of both",
                file=sys.stderr,
            )
    return links, notes


def summary(words: np.ndarray) -> str:
    """Which fertilities the source words have."""
    share = np.bincount(words.clip(max=3), minlength=4) / max(1, len(words))
    shares = ", ".join(f"{name}: {part:.1%}" for name, part in zip(("0", "1", "2", "3+"), share))
    return f"words of fertility {shares}; largest {words.max(initial=0)}"


def languages(args, folder: str) -> Tuple[str, str]:
    """Those given or, as in fairseq, those in a file's name."""
    given = args.source_lang, args.target_lang
    if any(given) and not all(given):
        raise ValueError("give both --source-lang and --target-lang, or neither")
    if not all(given):
        given = infer_languages(folder)
    check_languages(*given)
    return given


def stems(folder: str, split: str, source: str, target: str) -> List[str]:
    """The split's two files without their endings; as in fairseq, also of data binarised for the other direction."""
    pairs = [f"{source}-{target}", f"{target}-{source}"]
    pair = next((p for p in pairs if exists(os.path.join(folder, f"{split}.{p}.{source}"))), pairs[0])
    return [os.path.join(folder, f"{split}.{pair}.{language}") for language in (source, target)]


def exists(stem: str) -> bool:
    """Whether one side of a split is there, binarised or as the text that ``fairseq-preprocess --dataset-impl raw``
    copies.
    """
    return os.path.exists(f"{stem}.idx") or os.path.isfile(stem)


def find_splits(folder: str, source: str, target: str) -> List[str]:
    """Every train, train1, valid, valid1, test ... with both sides, in this order."""
    matches = [SPLIT.fullmatch(name) for name in {name.split(".")[0] for name in os.listdir(folder)}]
    order = sorted((("train", "valid", "test").index(m[1]), int(m[2] or 0), m[0]) for m in matches if m)
    return [split for *_, split in order if all(exists(stem) for stem in stems(folder, split, source, target))]


def load_pair(folder: str, split: str, source: str, target: str, home: str) -> List[Text]:
    """Both sides of a split; raises when a file is missing or makes no sense.

    Args:
        home: the folder of the dictionaries.
    """
    files = stems(folder, split, source, target)
    raw = any(os.path.isfile(file) and not os.path.exists(f"{file}.idx") for file in files)
    check_files(folder, split, source, target, "raw" if raw else None)
    sides = []
    for file, dictionary in zip(files, load_dictionaries(home, source, target)):
        sides.append(load_text(file, dictionary.eos(), dictionary))
        largest = int(sides[-1].tokens.max(initial=0))
        if largest >= len(dictionary):
            raise ValueError(
                f"{file} has token {largest}, its dictionary ends at {len(dictionary) - 1}: the data was "
                "binarised with another dictionary"
            )
        unread = np.isin(sides[-1].tokens, not_words(dictionary))
        sides[-1].tokens[unread] = dictionary.unk()  # as the model will read them
    left, right = (len(text.sizes) for text in sides)
    if left != right:  # raw text
        raise ValueError(f"{split}: {left} {source} but {right} {target} sentences: they are no pairs")
    return sides


def load_dictionaries(folder: str, source: str, target: str) -> List[Dictionary]:
    return [load_dictionary(os.path.join(folder, f"dict.{language}.txt")) for language in (source, target)]


if __name__ == "__main__":
    main()
