"""nar-align: word alignments of binarised text, and from them the fertilities that `nat` is trained with.

Example, which writes work/bin/train.en-de.fert and the same for valid and test:

    nar-align work/bin -s en -t de
"""
import argparse
import logging
import os
import re
import sys
from typing import List, Tuple

import numpy as np

from nar_plugins.data.checks import check_files, check_languages, infer_languages
from nar_plugins.data.dictionary import load_dictionary, not_words
from nar_plugins.data.fertility import fertility_path, write_fertilities
from nar_plugins.distill.align import MOST_LINKS, Aligner, Text, fertilities, load_text, read_links

SPLIT = re.compile(r"(train|valid|test)(\d*)")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nar-align", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA-BIN", help="folder of fairseq-preprocess; receives SPLIT.SRC-TGT.fert")
    parser.add_argument("-s", "--source-lang", metavar="SRC", help="source language (default: as the data are named)")
    parser.add_argument("-t", "--target-lang", metavar="TGT", help="target language (default: as the data are named)")
    parser.add_argument("--splits", help="such as train,valid (default: every train, valid, valid1 ... with both sides)")
    parser.add_argument("--alignments", nargs="+", metavar="FILE",
                        help="links like 0-0 1-2, made elsewhere: one file for each of --splits, in that order")  # fmt: skip
    parser.add_argument("--iterations", type=int, help="of the aligner, over train (and train1 ...) (default 5)")
    parser.add_argument("--most-links", type=int, metavar="N",
                        help=f"of a larger train, pairs with N possible links (default {MOST_LINKS}: 5 GB)")  # fmt: skip
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    logging.getLogger("fairseq.data.data_utils").setLevel(logging.WARNING)  # says every file twice
    try:
        align(args)
    except (ValueError, OSError) as error:
        sys.exit(f"nar-align: {error}")


def align(args) -> None:
    if not os.path.isdir(args.data):
        raise ValueError(f"no data folder '{args.data}': binarise the text with fairseq-preprocess first")
    source, target = languages(args)
    found = find_splits(args.data, source, target)
    splits = args.splits.split(",") if args.splits else found or ["train"]
    settings = {"iterations": args.iterations, "most_links": args.most_links}
    settings = {name: value for name, value in settings.items() if value is not None}
    if args.alignments:
        if settings:
            raise ValueError(f"--{next(iter(settings)).replace('_', '-')} is the aligner's: leave it out with --alignments")
        if len(args.alignments) != len(splits):
            raise ValueError(f"{len(args.alignments)} of --alignments for {len(splits)} splits ({', '.join(splits)}): name "
                             "the splits that the files are of with --splits")  # fmt: skip
        texts = {split: load_pair(args.data, split, source, target) for split in splits}
        links = [read_links(file, *(text.sizes for text in texts[split])) for file, split in zip(args.alignments, splits)]
    else:
        learn = [split for split in found if split.startswith("train")] or ["train"]
        texts = {split: load_pair(args.data, split, source, target) for split in dict.fromkeys([*learn, *splits])}
        aligner = Aligner(progress=True)
        sides = [Text(*map(np.concatenate, zip(*side))) for side in zip(*(texts[split] for split in learn))]
        used = aligner.train(*sides, **settings)
        print(f"aligner: {used:,} of {len(sides[0].sizes):,} pairs of {', '.join(learn)}, lambda {aligner.tension:.1f}")
        links = [aligner.align(*texts[split]) for split in splits]
    for split, linked in zip(splits, links):
        left, right = (text.sizes for text in texts[split])
        path, counts = fertility_path(args.data, split, source, target), fertilities(linked, left, right)
        write_fertilities(path, counts, left + 1)
        print(f"{path}: {len(left):,} lines; {summary(np.delete(counts, (left + 1).cumsum() - 1))}")


def summary(words: np.ndarray) -> str:
    """Which fertilities the source words have."""
    share = np.bincount(words.clip(max=3), minlength=4) / max(1, len(words))
    shares = ", ".join(f"{name}: {part:.1%}" for name, part in zip(("0", "1", "2", "3+"), share))
    return f"words of fertility {shares}; largest {words.max(initial=0)}"


def languages(args) -> Tuple[str, str]:
    """Those given or, as in fairseq, those in a file's name."""
    given = args.source_lang, args.target_lang
    if any(given) and not all(given):
        raise ValueError("give both --source-lang and --target-lang, or neither")
    if not all(given):
        given = infer_languages(args.data)
    check_languages(*given)
    return given


def stems(folder: str, split: str, source: str, target: str) -> List[str]:
    """The split's two files without their endings; as in fairseq, also of data binarised for the other direction."""
    pairs = [f"{source}-{target}", f"{target}-{source}"]
    pair = next((p for p in pairs if os.path.exists(os.path.join(folder, f"{split}.{p}.{source}.idx"))), pairs[0])
    return [os.path.join(folder, f"{split}.{pair}.{language}") for language in (source, target)]


def find_splits(folder: str, source: str, target: str) -> List[str]:
    """Every train, train1, valid, valid1, test ... with both sides, in this order."""
    matches = [SPLIT.fullmatch(name) for name in {name.split(".")[0] for name in os.listdir(folder)}]
    order = sorted((("train", "valid", "test").index(m[1]), int(m[2] or 0), m[0]) for m in matches if m)
    return [split for *_, split in order if all(os.path.exists(f"{s}.idx") for s in stems(folder, split, source, target))]


def load_pair(folder: str, split: str, source: str, target: str) -> List[Text]:
    """Both sides of a split; raises when a file is missing or makes no sense."""
    check_files(folder, split, source, target)
    texts = []
    for stem, language in zip(stems(folder, split, source, target), (source, target)):
        dictionary = load_dictionary(os.path.join(folder, f"dict.{language}.txt"))
        text = load_text(stem, dictionary.eos())
        text.tokens[np.isin(text.tokens, not_words(dictionary))] = dictionary.unk()  # as the model will read them
        texts.append(text)
    return texts


if __name__ == "__main__":
    main()
