"""The files of a split: fairseq names them SPLIT.SRC-TGT.LANG, and reads data of either direction."""

import itertools
import os
import re
from typing import List, Optional, Sequence, Tuple

from fairseq import utils

BINARISED, RAW = ".idx", ""  # file endings of one side of a split: written by fairseq-preprocess, and raw text
SPLIT = re.compile(r"(train|valid|test)(\d*)")


def folder_of(data: str, epoch: int = 1) -> str:
    """The folder that fairseq reads a split from; of several, joined by colons, training reads the next every epoch.

    Args:
        epoch: the epoch of training, from 1.
    """
    folders = utils.split_paths(data)
    return folders[(epoch - 1) % len(folders)]


def check_folder(folder: str, how: str = "fairseq-preprocess") -> None:
    """Raise unless a data folder exists.

    Args:
        how: the command that makes one, for the message.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"no data folder '{folder}': binarise the text with {how} first")


def find_languages(folder: str, source: Optional[str] = None, target: Optional[str] = None) -> Tuple[str, str]:
    """Source and target language: those given, or else those in the name of a file; of one that is given, the other.

    fairseq ignores one that is given alone, and infers both from any file with such a name, also from this package's
    fertilities, which may be of the other direction. Here only an index (train.en-de.en.idx) or raw text
    (train.en-de.en) counts.

    Raises:
        ValueError: there is no folder or no such file, or both languages are the same, for which fairseq would read one
            file twice.
    """
    check_folder(folder)
    if source is None or target is None:
        first, second = infer_languages(folder)
        source, target = (
            source or (second if target == first else first),
            target or (first if source == second else second),
        )
    if source == target:
        raise ValueError(f"source and target language are both '{source}': give --source-lang and --target-lang")
    return source, target


def infer_languages(folder: str) -> Tuple[str, str]:
    """Source and target language in the name of the first file of a split."""
    for name in sorted(os.listdir(folder)):
        pair = re.fullmatch(r"[^.]+\.([^.-]+)-([^.-]+)\.(\1|\2)(\.idx)?", name)
        if pair:
            return pair[1], pair[2]
    raise ValueError(f"{folder} holds no split like train.de-en.de.idx: give --source-lang and --target-lang")


def ending_of(impl: Optional[str]) -> str:
    """The ending of the files that fairseq reads with this ``--dataset-impl``."""
    return RAW if impl == "raw" else BINARISED


def exists(stem: str, endings: Sequence[str] = (BINARISED, RAW)) -> bool:
    """Whether one side of a split exists."""
    return any(os.path.isfile(stem + ending) for ending in endings)


def find_stems(
    folder: str, split: str, source: str, target: str, endings: Sequence[str] = (BINARISED, RAW)
) -> List[str]:
    """The paths of a split's source and target, without their endings.

    As in fairseq, data binarised for the other direction are used if the source of this direction does not exist. If
    neither source exists, the targets decide.
    """
    languages = (source, target)
    directions = [
        [os.path.join(folder, f"{split}.{pair}.{language}") for language in languages]
        for pair in (f"{source}-{target}", f"{target}-{source}")
    ]
    candidates = [stems for side in (0, 1) for stems in directions if exists(stems[side], endings)]
    return (candidates or directions)[0]


def find_splits(folder: str, source: str, target: str) -> List[str]:
    """The splits with both sides, in the order train, train1 ..., valid, valid1 ..., test ..."""
    matches = [SPLIT.fullmatch(name) for name in {name.split(".")[0] for name in os.listdir(folder)}]
    order = sorted((("train", "valid", "test").index(m[1]), int(m[2] or 0), m[0]) for m in matches if m)
    return [split for *_, split in order if all(exists(stem) for stem in find_stems(folder, split, source, target))]


def combined_splits(folder: str, split: str, source: str, target: str, impl: Optional[str]) -> List[str]:
    """The splits that fairseq combines under one name: train, train1, train2 ... up to the first that is missing.

    Args:
        impl: ``--dataset-impl``.
    """
    endings = [ending_of(impl)]
    numbered = (f"{split}{k}" for k in itertools.count(1))
    existing = itertools.takewhile(
        lambda name: exists(find_stems(folder, name, source, target, endings)[0], endings), numbered
    )
    return [split, *existing]
