"""``nar-align``: fertilities of every split, from links that the aligner makes or that files give."""

import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from fairseq.data import Dictionary

from nar_plugins.corpora.aligner import Aligner
from nar_plugins.corpora.links import (
    WARN_UNLINKED,
    check_links,
    fertilities,
    one_link_per_target,
    parse_links,
    unlinked_share,
)
from nar_plugins.corpora.text import Text, load_dictionaries, load_pair
from nar_plugins.data.fertility import fertility_path, write_fertilities
from nar_plugins.data.splits import check_folder, find_languages, find_splits
from nar_plugins.data.whole_file import check_output
from nar_plugins.models.flags import flag


class Job(NamedTuple):
    """The data to align, and the source of the links."""

    folders: Sequence[str]  # binarised data; the dictionaries are in the first
    source: Optional[str] = None  # language; None: from the names of the files
    target: Optional[str] = None
    splits: Sequence[str] = ()  # empty: all with both sides
    files: Sequence[str] = ()  # links of another aligner, one file per split; empty: ``Aligner`` makes them
    settings: Dict[str, int] = {}  # arguments of ``Aligner.train``


class Split(NamedTuple):
    """A split of one of the folders."""

    folder: str
    name: str  # train, valid1 ...


class Message(NamedTuple):
    """A line of output for the user."""

    text: str
    warning: bool = False


def align(job: Job) -> Iterator[Message]:
    """Write the fertilities of every split; yields a message for each step.

    Raises:
        ValueError: the data or the files of links cannot be used; then nothing was written.
    """
    for folder in job.folders:
        check_folder(folder)
    home = job.folders[0]
    if (job.source is None) != (job.target is None):
        raise ValueError("give both --source-lang and --target-lang, or neither")
    source, target = find_languages(home, job.source, job.target)
    existing = [Split(folder, name) for folder in job.folders for name in find_splits(folder, source, target)]
    splits = existing or [Split(home, "train")]
    if job.splits:  # the first folder must have each of them, as in fairseq; the other folders may
        requested = [Split(folder, name) for folder in job.folders for name in job.splits]
        splits = [split for split in requested if split.folder == home or split in existing]
    for split in splits:
        check_output(fertility_path(*split, source, target), "DATA-BIN")

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
        train_splits = [split for split in existing if split.name.startswith("train")] or [Split(home, "train")]
        texts = load([*train_splits, *splits])
        aligner = Aligner(progress=True)
        sides = [Text(*map(np.concatenate, zip(*side))) for side in zip(*(texts[split] for split in train_splits))]
        used = aligner.train(*sides, **job.settings)
        names = ", ".join(dict.fromkeys(split.name for split in train_splits))
        yield Message(f"aligner: {used:,} of {len(sides[0].sizes):,} pairs of {names}, lambda {aligner.tension:.1f}")
        links, notes = [aligner.align(*texts[split]) for split in splits], [""] * len(splits)
    for split, split_links, note in zip(splits, links, notes):
        source_sizes, target_sizes = (text.sizes for text in texts[split])
        path, counts = fertility_path(*split, source, target), fertilities(split_links, source_sizes, target_sizes)
        write_fertilities(path, counts, source_sizes + 1)
        without_eos = np.delete(counts, (source_sizes + 1).cumsum() - 1)
        yield Message(f"{path}: {len(source_sizes):,} lines; {summary(without_eos)}{note}")


def check_files_fit(job: Job, splits: Sequence[Split]) -> None:
    """Raise unless there is one file of links per split, and no setting of the aligner."""
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
    """The links of every file, one per target word, and the share of target words without a link in the file.

    All files are checked before any is used.
    """
    symbols = tuple(dictionary.symbols for dictionary in dictionaries)
    sizes = [[text.sizes for text in pair] for pair in texts]
    parsed = [parse_links(file, *lengths) for file, lengths in zip(files, sizes)]
    for file, pair, links in zip(files, texts, parsed):
        check_links(links, *pair, symbols, file)
    return (
        [one_link_per_target(links, *lengths) for links, lengths in zip(parsed, sizes)],
        [unlinked_share(links, *lengths) for links, lengths in zip(parsed, sizes)],
    )


def unlinked_warning(file: str, share: float) -> Message:
    return Message(
        f"{file} has no link for {share:.0%} of the target tokens, which take their neighbour's: "
        "an aligner's links of one direction leave fewer than an intersection of both",
        warning=True,
    )


def summary(counts: np.ndarray) -> str:
    """The distribution of the fertilities (source words,)."""
    share = np.bincount(counts.clip(max=3), minlength=4) / max(1, len(counts))
    shares = ", ".join(f"{name}: {part:.1%}" for name, part in zip(("0", "1", "2", "3+"), share))
    return f"words of fertility {shares}; largest {counts.max(initial=0)}"
