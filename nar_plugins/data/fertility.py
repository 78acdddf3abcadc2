"""Fertilities: the number of target tokens aligned to each source token, in a file beside the binarised data.

Gu et al. 2018, "Non-autoregressive neural machine translation", section 3.1. ``nar-align`` writes the file: one line
per sentence pair in the data set's order, one integer per source token. They add up to the target's length, ``</s>``
included on both sides. The fertility of the source's ``</s>`` is 1, for the target's ``</s>``; if the source has no
other token, its ``</s>`` has the whole target.
"""

from pathlib import Path
from typing import Tuple

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, LanguagePairDataset

from nar_plugins.data.whole_file import written_whole

CHUNK = 1 << 20  # bytes read, and numbers written, at once


def fertility_path(folder, split: str, source: str, target: str) -> Path:
    return Path(folder) / f"{split}.{source}-{target}.fert"


def write_fertilities(path: Path, values: np.ndarray, sizes: np.ndarray) -> None:
    """Write the file atomically.

    Args:
        values: (source tokens,) int, the fertilities of all sentences, concatenated.
        sizes: (sentences,) int, the sources' lengths, at least 1.
    """
    last = np.zeros(len(values), dtype=bool)
    last[sizes.cumsum() - 1] = True
    numbers = range(int(values.max(initial=0)) + 1)
    texts = np.array([*(f"{n} " for n in numbers), *(f"{n}\n" for n in numbers)], dtype=object)
    with written_whole(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        for start in range(0, len(values), CHUNK):
            chunk = slice(start, start + CHUNK)
            file.write("".join(texts[values[chunk] + len(numbers) * last[chunk]].tolist()))


def read_fertilities(path: Path) -> Tuple[np.ndarray, np.ndarray]:
    """Read a file of fertilities.

    Returns:
        values: (source tokens,) int32, the lines concatenated.
        offsets: (lines + 1,) int64, where each line begins in ``values``, and the end of the last.

    Raises:
        ValueError: the file is missing, or a line has anything but non-negative integers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no fertilities {path}: run {command(path)}")
    values, counts, lines = [np.empty(0, dtype=np.int32)], [np.zeros(1, dtype=np.int64)], 0
    with open(path, "rb") as file:
        while text := file.read(CHUNK) + file.readline():
            text += b"" if text.endswith(b"\n") else b"\n"
            letters = np.frombuffer(text, dtype=np.uint8)
            digit, end = (letters >= ord("0")) & (letters <= ord("9")), letters == ord("\n")
            ends, wrong = np.flatnonzero(end), np.flatnonzero(~digit & ~end & (letters != ord(" ")))
            if len(wrong):
                line = lines + int(np.searchsorted(ends, wrong[0]))
                raise ValueError(
                    f"{path}, line {line + 1} has other things than numbers from 0: run {command(path)} again"
                )
            begins = np.flatnonzero(digit & ~np.append(False, digit[:-1]))
            counts.append(np.diff(np.searchsorted(begins, ends), prepend=0))
            if len(begins):
                values.append(np.fromstring(text, dtype=np.int32, sep=" "))
            lines += len(ends)
    return np.concatenate(values), np.concatenate(counts).cumsum()


def command(path: Path) -> str:
    """The command that writes this file."""
    source, _, target = path.stem.split(".")[-1].partition("-")
    return f"nar-align {path.parent} -s {source} -t {target}"


def check_fertilities(path: Path, values: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
    """Raise unless the fertilities fit the sentence pairs; the first line that does not is named.

    Args:
        values, offsets: as ``read_fertilities`` returns them.
        sizes: (pairs, 2) int, the lengths of source and target, ``</s>`` included.
    """
    counts = np.diff(offsets)
    sums = np.diff(np.append(0, values.cumsum(dtype=np.int64))[offsets])
    for actual, expected, what in (
        (counts, sizes[:, 0], "{} numbers, the source {} tokens"),
        (sums, sizes[:, 1], "numbers that add up to {}, the target {} tokens"),
    ):
        wrong = np.flatnonzero(actual != expected)
        if len(wrong):
            what = what.format(actual[wrong[0]], expected[wrong[0]])
            raise ValueError(f"{path}, line {wrong[0] + 1} has {what}: run {command(path)} again")


class FertilityDataset(BaseWrapperDataset):
    """Sentence pairs with ``fertilities`` (B, S) int64 in ``net_input``, 0 on padding.

    Args:
        dataset: the pairs, padded on the right.
        paths: the split's file; if fairseq combines several splits (train, train1), their files in that order.

    Raises:
        ValueError: a file is missing, or does not fit the data set.
    """

    def __init__(self, dataset: LanguagePairDataset, *paths: Path):
        super().__init__(dataset)
        files = [read_fertilities(path) for path in paths]
        lines = np.array([len(offsets) - 1 for _, offsets in files])
        if lines.sum() != len(dataset):
            what = f"{lines.sum()} lines, the data set {len(dataset)} pairs"
            raise ValueError(f"{' and '.join(map(str, paths))} has {what}: run {command(paths[0])} again")
        for path, file, sizes in zip(paths, files, np.split(dataset.sizes, lines.cumsum()[:-1])):
            check_fertilities(path, *file, sizes)
        self.values = np.concatenate([values for values, _ in files])
        self.offsets = np.append(0, np.concatenate([np.diff(offsets) for _, offsets in files])).cumsum()

    def collater(self, samples, pad_to_length=None):
        batch = self.dataset.collater(samples, pad_to_length=pad_to_length)
        if batch:
            sentences = batch["id"].numpy()  # sorted by the data set's collater
            begin, end = self.offsets[sentences, None], self.offsets[sentences + 1, None]
            index = begin + np.arange(batch["net_input"]["src_tokens"].size(1))
            fertilities = np.where(index < end, self.values[np.minimum(index, end - 1)], 0)
            batch["net_input"]["fertilities"] = torch.from_numpy(fertilities.astype(np.int64))
        return batch

    # attributes of a pair data set that fairseq and the task use, and BaseWrapperDataset does not forward

    src = property(lambda self: self.dataset.src)
    tgt = property(lambda self: self.dataset.tgt)
    src_sizes = property(lambda self: self.dataset.src_sizes)
    tgt_sizes = property(lambda self: self.dataset.tgt_sizes)

    def num_tokens_vec(self, indices):
        return self.dataset.num_tokens_vec(indices)
