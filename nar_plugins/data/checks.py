"""Checks of binarised data before training or decoding starts; each error names the file and the fix."""

import logging
import math
import os
import struct
from typing import Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import ConcatDataset, TruncateDataset, data_utils, indexed_dataset

from nar_plugins.data import splits

logger = logging.getLogger(__name__)

SAMPLE = 2000  # sentences examined for the rate of <unk>
MAX_UNKNOWN = 1 / 3  # a higher rate of <unk> is refused
WARN_UNKNOWN = 1 / 10
MIN_VALID_TOKENS = 200  # a smaller validation split is too small to judge its segmentation
FORMATS = {
    "mmap": ("mmap",),
    "cached": ("cached", "lazy"),
    "huffman": ("huffman",),
}  # fairseq's name for an index format -> the --dataset-impl values that read it


def check_files(folder: str, split: str, source: str, target: str, impl: Optional[str] = None) -> None:
    """Raise unless both sides of a split exist, are complete, not empty and equally long.

    Args:
        impl: ``--dataset-impl``; for raw text only the existence of the files is checked.
    """
    splits.check_folder(folder)
    ending = splits.ending_of(impl)
    stems = splits.find_stems(folder, split, source, target, [ending])
    counts = []
    for side, stem in zip(("source", "target"), stems):
        for file in (f"{stem}.idx", f"{stem}.bin") if ending else (stem,):
            if not os.path.exists(file):
                hint = "binarise both sides (one side: fairseq-interactive)"
                if ending and os.path.isfile(stem):
                    hint = f"{stem} is raw text: give --dataset-impl raw, or binarise it"
                raise ValueError(f"{split}: no {side} file {file}; {hint}")
        if ending:
            counts.append(count_sentences(stem, impl))
    check_pairs(split, (source, target), counts)


def check_pairs(split: str, languages: Tuple[str, str], counts: Sequence[int]) -> None:
    """Raise unless both sides of a split have the same number of sentences.

    Args:
        counts: sentences of the source and of the target; empty if unknown.
    """
    if len(set(counts)) > 1:
        (source, target), (left, right) = languages, counts
        raise ValueError(f"{split}: {left} {source} but {right} {target} sentences: they are no pairs")


def check_text(stem: str, split: str, impl: Optional[str] = None) -> None:
    """Raise unless a monolingual split (STEM.idx, STEM.bin) exists, is complete and not empty."""
    for file in (f"{stem}.idx", f"{stem}.bin"):
        if not os.path.exists(file):
            raise ValueError(
                f"{split}: no file {file}; binarise the text with fairseq-preprocess --only-source, without a language"
            )
    count_sentences(stem, impl)


def count_sentences(stem: str, impl: Optional[str]) -> int:
    """The number of sentences in one side of a split.

    Args:
        impl: ``--dataset-impl``; None: the format that fairseq detects. fairseq prefers raw text of the same name.

    Raises:
        ValueError: the index or the data is truncated, of another format, or has no sentence.
    """
    if os.path.getsize(f"{stem}.bin") == 0:
        raise ValueError(f"{stem}.bin is empty: the split has no sentence")
    if impl is None and os.path.isfile(stem):
        raise ValueError(
            f"{stem} is raw text beside {stem}.idx, and fairseq would read the former: take one of them away"
        )
    detected = indexed_dataset.infer_dataset_impl(stem)
    if impl and detected in FORMATS and impl not in FORMATS[detected]:
        kinds = " or ".join(FORMATS[detected])
        raise ValueError(f"{stem}.idx is no data of --dataset-impl {impl} (it is {kinds}): leave the flag out")
    reason = None
    try:
        dataset = data_utils.load_indexed_dataset(stem, None, impl)
        if len(dataset) > 0:
            dataset[len(dataset) - 1]
    except (AssertionError, ValueError, KeyError, IndexError, OSError, EOFError, struct.error) as error:
        reason = type(error).__name__
    if reason:  # raised after fairseq's half-built data set is freed: its destructor prints an error, too
        raise ValueError(f"{stem}.idx or .bin is corrupt ({reason}): binarise this split again")
    if len(dataset) == 0:
        raise ValueError(f"{stem}.idx holds no sentence: the split is empty")
    return len(dataset)


def min_tokens_to_refuse(train: bool, training: bool) -> float:
    """The size in tokens from which a split with too many ``<unk>`` is refused.

    The training split is refused at any size: the dictionary was made from such text. A validation split needs
    ``MIN_VALID_TOKENS``, because one line may consist of names. Text that is only decoded or scored is never refused:
    text of another domain is still translated, as in fairseq-interactive.

    Args:
        train: whether it is the training split.
        training: whether the command trains.
    """
    return math.inf if not training else 0 if train else MIN_VALID_TOKENS


def check_tokens(dataset, dictionary, name: str, min_tokens: float = 0) -> None:
    """Raise when one side was binarised with another dictionary: token ids out of range, or mostly ``<unk>``.

    Args:
        dataset: token ids by sentence; the first ``SAMPLE`` are examined.
        name: the side's name in the message.
        min_tokens: in a smaller data set many ``<unk>`` only give a warning.
    """
    tokens = torch.cat([dataset[i] for i in range(min(len(dataset), SAMPLE))])
    check_largest(tokens.max(), dictionary, name)
    tokens = tokens[tokens != dictionary.eos()]
    unknown = float(tokens.eq(dictionary.unk()).float().mean()) if len(tokens) else 0.0
    message = f"{name}: {unknown:.0%} of the tokens are <unk>"
    if unknown > MAX_UNKNOWN:
        message += ": was the text segmented as for its dictionary?"
        if len(tokens) >= min_tokens:
            raise ValueError(message)
    if unknown > WARN_UNKNOWN:
        logger.warning(message)


def check_largest(token: int, dictionary, name: str) -> None:
    """Raise when the largest token id of one side is out of the dictionary's range."""
    if token >= len(dictionary):
        raise ValueError(
            f"{name} has token {int(token)}, its dictionary ends at {len(dictionary) - 1}: "
            "the data was binarised with another dictionary"
        )


def check_dictionaries(source, target) -> None:
    """Raise unless both dictionaries have the same ids for pad, eos and unk, and hold any words."""
    for symbol in ("pad", "eos", "unk"):
        left, right = getattr(source, symbol)(), getattr(target, symbol)()
        if left != right:
            raise ValueError(f"the dictionaries disagree: {symbol} is {left} in the source's, {right} in the target's")
    for dictionary, side in ((source, "source"), (target, "target")):
        if len(dictionary) <= max(dictionary.nspecial, 5):
            raise ValueError(f"the {side} dictionary has no words: was it cut short?")


def cut_sources(dataset) -> int:
    """How many sentences ``--truncate-source`` truncates, in a data set that fairseq has wrapped or concatenated."""
    if isinstance(dataset, ConcatDataset):
        return sum(cut_sources(part) for part in dataset.datasets)
    while not isinstance(dataset, TruncateDataset):
        dataset = dataset.dataset
    return int(
        (dataset.dataset.sizes - 1 > dataset.truncation_length).sum()
    )  # sizes include </s>, which truncation keeps


def check_batch_size(dataset, max_tokens: int, max_positions=None) -> None:
    """Raise for sentences longer than ``--max-tokens``, naming the longest.

    Args:
        max_positions: longer sentences are skipped before the check; None: none is.
    """
    indices, _ = dataset.filter_indices_by_size(np.arange(len(dataset)), max_positions)
    sizes = np.array([dataset.num_tokens(i) for i in indices])
    if len(sizes) and sizes.max() > max_tokens:
        more, number = (sizes > max_tokens).sum(), indices[sizes.argmax()]
        raise ValueError(
            f"{more} of {len(sizes)} sentences are longer than --max-tokens {max_tokens}, the longest is number "
            f"{number} of {sizes.max()} tokens: raise --max-tokens"
        )
