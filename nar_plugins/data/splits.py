"""Which files a split of a data folder has: fairseq names them SPLIT.SRC-TGT.LANG, and reads either direction."""

import itertools
import os
import re
from typing import List, Optional, Sequence, Tuple

from fairseq import utils

BINARISED, RAW = ".idx", ""  # the ending of one side of a split: as fairseq-preprocess writes it, and raw text
SPLIT = re.compile(r"(train|valid|test)(\d*)")


def folder_of(data: str, epoch: int = 1) -> str:
    """The folder, of several joined by colons, that fairseq reads a split from: training takes turns, epoch by epoch.

    Args:
        epoch: of the training split, from 1.
    """
    folders = utils.split_paths(data)
    return folders[(epoch - 1) % len(folders)]


def check_folder(folder: str, how: str = "fairseq-preprocess") -> None:
    """Raise unless a data folder is there.

    Args:
        how: the command that makes one.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"no data folder '{folder}': binarise the text with {how} first")


def find_languages(folder: str, source: Optional[str] = None, target: Optional[str] = None) -> Tuple[str, str]:
    """Source and target language: those given or, where one is not, by the name of a file.

    fairseq takes any file of such a name, and so one of ours, which can be of the other direction. Here an index is
    taken, such as train.en-de.en.idx, or raw text, train.en-de.en.

    Raises:
        ValueError: there is no folder or no such file, or both are one language: fairseq would read the same file for
            both.
    """
    check_folder(folder)
    if source is None or target is None:
        source, target = infer_languages(folder)
    if source == target:
        raise ValueError(f"source and target language are both '{source}': give --source-lang and --target-lang")
    return source, target


def infer_languages(folder: str) -> Tuple[str, str]:
    """The languages that the first file of a split is named after."""
    for name in sorted(os.listdir(folder)):
        pair = re.fullmatch(r"[^.]+\.([^.-]+)-([^.-]+)\.(\1|\2)(\.idx)?", name)
        if pair:
            return pair[1], pair[2]
    raise ValueError(f"{folder} holds no split like train.de-en.de.idx: give --source-lang and --target-lang")


def ending_of(impl: Optional[str]) -> str:
    """The ending of the files that fairseq reads with this ``--dataset-impl``."""
    return RAW if impl == "raw" else BINARISED


def exists(stem: str, endings: Sequence[str] = (BINARISED, RAW)) -> bool:
    """Whether one side of a split is there."""
    return any(os.path.isfile(stem + ending) for ending in endings)


def find_stems(
    folder: str, split: str, source: str, target: str, endings: Sequence[str] = (BINARISED, RAW)
) -> List[str]:
    """The files of a split's source and target, without their endings.

    As fairseq does, data that were binarised for the other direction are taken where there are none of this one: it is
    the source that decides. Where neither source is there, a target does.
    """
    languages = (source, target)
    directions = [
        [os.path.join(folder, f"{split}.{pair}.{language}") for language in languages]
        for pair in (f"{source}-{target}", f"{target}-{source}")
    ]
    candidates = [stems for side in (0, 1) for stems in directions if exists(stems[side], endings)]
    return (candidates or directions)[0]


def find_splits(folder: str, source: str, target: str) -> List[str]:
    """Every train, train1, valid, valid1, test ... with both sides, in this order."""
    matches = [SPLIT.fullmatch(name) for name in {name.split(".")[0] for name in os.listdir(folder)}]
    order = sorted((("train", "valid", "test").index(m[1]), int(m[2] or 0), m[0]) for m in matches if m)
    return [split for *_, split in order if all(exists(stem) for stem in find_stems(folder, split, source, target))]


def combined_splits(folder: str, split: str, source: str, target: str, impl: Optional[str]) -> List[str]:
    """What fairseq trains on under a split's name, in its order: train, train1, train2 ... to the last without a gap.

    Args:
        impl: ``--dataset-impl``.
    """
    endings = [ending_of(impl)]
    numbered = (f"{split}{k}" for k in itertools.count(1))
    there = itertools.takewhile(
        lambda name: exists(find_stems(folder, name, source, target, endings)[0], endings), numbered
    )
    return [split, *there]
