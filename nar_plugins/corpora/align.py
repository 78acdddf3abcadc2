"""The job of ``nar-align``: links for every split, by the aligner or from files, and from them fertilities."""

import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from fairseq.data import Dictionary

from nar_plugins.corpora.aligner import Aligner
from nar_plugins.corpora.links import WARN_UNLINKED, check_links, fertilities, one_each, parse_links, unlinked
from nar_plugins.corpora.text import Text, load_dictionaries, load_pair
from nar_plugins.data.fertility import fertility_path, write_fertilities
from nar_plugins.data.splits import check_folder, find_languages, find_splits
from nar_plugins.models.flags import flag


class Job(NamedTuple):
    """What is aligned, and by what."""

    folders: Sequence[str]  # of binarised data; the dictionaries are the first's
    source: Optional[str] = None  # language; None: as the data are named
    target: Optional[str] = None
    splits: Sequence[str] = ()  # empty: all with both sides
    files: Sequence[str] = ()  # links made elsewhere, a file a split; empty: the aligner makes them
    settings: Dict[str, int] = {}  # of ``Aligner.train``


class Split(NamedTuple):
    """A split of one of the folders."""

    folder: str
    name: str  # train, valid1 ...


class Message(NamedTuple):
    """What the user is told."""

    text: str
    warning: bool = False


def align(job: Job) -> Iterator[Message]:
    """Write the fertilities of every split; yields what was done.

    Raises:
        ValueError: the data or the files of links cannot be used; nothing has then been written.
    """
    for folder in job.folders:
        check_folder(folder)
    home = job.folders[0]
    if (job.source is None) != (job.target is None):
        raise ValueError("give both --source-lang and --target-lang, or neither")
    source, target = find_languages(home, job.source, job.target)
    there = [Split(folder, name) for folder in job.folders for name in find_splits(folder, source, target)]
    splits = there or [Split(home, "train")]
    if job.splits:  # as fairseq, in the first folder; and what the others have of them
        wanted = [Split(folder, name) for folder in job.folders for name in job.splits]
        splits = [split for split in wanted if split.folder == home or split in there]

    def load(chosen: Sequence[Split]) -> Dict[Split, List[Text]]:
        return {split: load_pair(*split, source, target, home) for split in dict.fromkeys(chosen)}

    if job.files:
        check_files_fit(job, splits)
        texts = load(splits)
        dictionaries = load_dictionaries(home, source, target)
        links, shares = read_files(job.files, [texts[split] for split in splits], dictionaries)
        yield from (unlinked_warning(file, share) for file, share in zip(job.files, shares) if share > WARN_UNLINKED)
        notes = [f"; target tokens without a link: {share:.1%}" for share in shares]
    else:
        learn = [split for split in there if split.name.startswith("train")] or [Split(home, "train")]
        texts = load([*learn, *splits])
        aligner = Aligner(progress=True)
        sides = [Text(*map(np.concatenate, zip(*side))) for side in zip(*(texts[split] for split in learn))]
        used = aligner.train(*sides, **job.settings)
        names = ", ".join(dict.fromkeys(split.name for split in learn))
        yield Message(f"aligner: {used:,} of {len(sides[0].sizes):,} pairs of {names}, lambda {aligner.tension:.1f}")
        links, notes = [aligner.align(*texts[split]) for split in splits], [""] * len(splits)
    for split, linked, note in zip(splits, links, notes):
        left, right = (text.sizes for text in texts[split])
        path, counts = fertility_path(*split, source, target), fertilities(linked, left, right)
        write_fertilities(path, counts, left + 1)
        words = np.delete(counts, (left + 1).cumsum() - 1)
        yield Message(f"{path}: {len(left):,} lines; {summary(words)}{note}")


def check_files_fit(job: Job, splits: Sequence[Split]) -> None:
    """Raise unless there is one file of links for every split, and nothing is asked of the aligner."""
    if job.settings:
        raise ValueError(f"{flag(next(iter(job.settings)))} is the aligner's: leave it out with --alignments")
    if len(job.files) != len(splits):
        names = [split.name if len(job.folders) == 1 else os.path.join(*split) for split in splits]
        raise ValueError(
            f"{len(job.files)} of --alignments for {len(splits)} splits ({', '.join(names)}): name "
            "the splits that the files are of with --splits"
        )


def read_files(
    files: Sequence[str], texts: List[List[Text]], dictionaries: List[Dictionary]
) -> Tuple[List[np.ndarray], List[float]]:
    """Of every file one link a target word, and the share of the target words that have none there.

    All are read and checked before any is used.
    """
    symbols = tuple(dictionary.symbols for dictionary in dictionaries)
    sizes = [[text.sizes for text in pair] for pair in texts]
    parsed = [parse_links(file, *lengths) for file, lengths in zip(files, sizes)]
    for file, pair, links in zip(files, texts, parsed):
        check_links(links, *pair, symbols, file)
    return (
        [one_each(links, *lengths) for links, lengths in zip(parsed, sizes)],
        [unlinked(links, *lengths) for links, lengths in zip(parsed, sizes)],
    )


def unlinked_warning(file: str, share: float) -> Message:
    return Message(
        f"{file} has no link for {share:.0%} of the target tokens, which take their neighbour's: "
        "an aligner's links of one direction leave fewer than an intersection of both",
        warning=True,
    )


def summary(words: np.ndarray) -> str:
    """Which fertilities the source words have."""
    share = np.bincount(words.clip(max=3), minlength=4) / max(1, len(words))
    shares = ", ".join(f"{name}: {part:.1%}" for name, part in zip(("0", "1", "2", "3+"), share))
    return f"words of fertility {shares}; largest {words.max(initial=0)}"
