"""Refuse data that makes no sense, by name, before a training has begun."""

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

SAMPLE = 2000  # sentences looked at for the rate of <unk>
MOST_UNKNOWN = 1 / 3  # refused
WARN_UNKNOWN = 1 / 10
ENOUGH = 200  # words of a validation set that say how it was segmented
FORMATS = {
    "mmap": ("mmap",),
    "cached": ("cached", "lazy"),
    "huffman": ("huffman",),
}  # how fairseq knows an index: its flags


def check_files(folder: str, split: str, source: str, target: str, impl: Optional[str] = None) -> None:
    """Raise unless the split's two binarised files are there, whole, not empty and equally long.

    Args:
        impl: ``--dataset-impl``; of raw text only the files' names are looked at, what is in them is left to fairseq.
    """
    splits.check_folder(folder)
    ending = splits.ending_of(impl)
    stems = splits.find_stems(folder, split, source, target, [ending])
    lines = []
    for side, stem in zip(("source", "target"), stems):
        for file in (f"{stem}.idx", f"{stem}.bin") if ending else (stem,):
            if not os.path.exists(file):
                hint = "binarise both sides (one side: fairseq-interactive)"
                if ending and os.path.isfile(stem):
                    hint = f"{stem} is raw text: give --dataset-impl raw, or binarise it"
                raise ValueError(f"{split}: no {side} file {file}; {hint}")
        if ending:
            lines.append(count_sentences(stem, impl))
    check_pairs(split, (source, target), lines)


def check_pairs(split: str, languages: Tuple[str, str], counts: Sequence[int]) -> None:
    """Raise unless both sides of a split have as many sentences.

    Args:
        counts: of the source and the target; empty where they are not known.
    """
    if len(set(counts)) > 1:
        (source, target), (left, right) = languages, counts
        raise ValueError(f"{split}: {left} {source} but {right} {target} sentences: they are no pairs")


def check_text(stem: str, split: str, impl: Optional[str] = None) -> None:
    """Raise unless a split of text without a translation (STEM.idx, STEM.bin) is there, whole and not empty."""
    for file in (f"{stem}.idx", f"{stem}.bin"):
        if not os.path.exists(file):
            raise ValueError(
                f"{split}: no file {file}; binarise the text with fairseq-preprocess --only-source, without a language"
            )
    count_sentences(stem, impl)


def count_sentences(stem: str, impl: Optional[str]) -> int:
    """Sentences in one side of a split; raises when its index or its data is cut short or foreign, or holds none.

    Args:
        impl: ``--dataset-impl``; None: as fairseq recognises the files, which takes raw text of the same name before
            them.
    """
    if os.path.getsize(f"{stem}.bin") == 0:
        raise ValueError(f"{stem}.bin is empty: the split has no sentence")
    if impl is None and os.path.isfile(stem):
        raise ValueError(
            f"{stem} is raw text beside {stem}.idx, and fairseq would read the former: take one of them away"
        )
    written = indexed_dataset.infer_dataset_impl(stem)
    if impl and written in FORMATS and impl not in FORMATS[written]:
        kinds = " or ".join(FORMATS[written])
        raise ValueError(f"{stem}.idx is no data of --dataset-impl {impl} (it is {kinds}): leave the flag out")
    reason = None
    try:
        dataset = data_utils.load_indexed_dataset(stem, None, impl)
        if len(dataset) > 0:
            dataset[len(dataset) - 1]
    except (AssertionError, ValueError, KeyError, IndexError, OSError, EOFError, struct.error) as error:
        reason = type(error).__name__
    if reason:  # raised here, where fairseq's half-made data set is gone: its destructor complains, and not last
        raise ValueError(f"{stem}.idx or .bin is corrupt ({reason}): binarise this split again")
    if len(dataset) == 0:
        raise ValueError(f"{stem}.idx holds no sentence: the split is empty")
    return len(dataset)


def judged(train: bool, training: bool) -> float:
    """How many words it takes to refuse a split for its ``<unk>``.

    What is trained on is always judged: a dictionary is made of such text. Validation in a training needs ``ENOUGH``
        words,
    for one line may well hold names only. What is only decoded or scored is never refused: a text of another domain is
    translated as well as it can be, as fairseq-interactive does.

    Args:
        train: whether it is the training split. training: whether this is a training.
    """
    return math.inf if not training else 0 if train else ENOUGH


def check_tokens(dataset, dictionary, name: str, enough: float = 0) -> None:
    """Raise when the tokens of one side cannot be of this dictionary: beyond its end, or mostly ``<unk>``.

    Args:
        dataset: token ids by sentence; the first ``SAMPLE`` are looked at.
        name: what the message calls it.
        enough: with fewer words than that, many ``<unk>`` are a warning.
    """
    tokens = torch.cat([dataset[i] for i in range(min(len(dataset), SAMPLE))])
    words = tokens[tokens != dictionary.eos()]
    check_largest(tokens.max(), dictionary, name)
    unknown = float(words.eq(dictionary.unk()).float().mean()) if len(words) else 0.0
    said = f"{name}: {unknown:.0%} of the tokens are <unk>"
    if unknown > MOST_UNKNOWN:
        said += ": was the text segmented as for its dictionary?"
        if len(words) >= enough:
            raise ValueError(said)
    if unknown > WARN_UNKNOWN:
        logger.warning(said)


def check_largest(token: int, dictionary, name: str) -> None:
    """Raise when the largest token of one side is beyond the dictionary's end."""
    if token >= len(dictionary):
        raise ValueError(
            f"{name} has token {int(token)}, its dictionary ends at {len(dictionary) - 1}: "
            "the data was binarised with another dictionary"
        )


def check_dictionaries(source, target) -> None:
    """Raise unless the two dictionaries agree on the symbols that mean something."""
    for symbol in ("pad", "eos", "unk"):
        left, right = getattr(source, symbol)(), getattr(target, symbol)()
        if left != right:
            raise ValueError(f"the dictionaries disagree: {symbol} is {left} in the source's, {right} in the target's")
    for dictionary, side in ((source, "source"), (target, "target")):
        if len(dictionary) <= max(dictionary.nspecial, 5):
            raise ValueError(f"the {side} dictionary has no words: was it cut short?")


def cut_sources(dataset) -> int:
    """How many sentences fairseq's ``--truncate-source`` cuts, in a data set that it has wrapped or put together."""
    if isinstance(dataset, ConcatDataset):
        return sum(cut_sources(part) for part in dataset.datasets)
    while not isinstance(dataset, TruncateDataset):
        dataset = dataset.dataset
    return int((dataset.dataset.sizes - 1 > dataset.truncation_length).sum())  # the sizes count </s>, which is put back


def check_batch_size(dataset, max_tokens: int, max_positions=None) -> None:
    """Raise, naming it, for a sentence that is longer than ``--max-tokens``.

    Args:
        max_positions: sentences beyond them are skipped; None: none is.
    """
    indices, _ = dataset.filter_indices_by_size(np.arange(len(dataset)), max_positions)
    sizes = np.array([dataset.num_tokens(i) for i in indices])
    if len(sizes) and sizes.max() > max_tokens:
        more, number = (sizes > max_tokens).sum(), indices[sizes.argmax()]
        raise ValueError(
            f"{more} of {len(sizes)} sentences are longer than --max-tokens {max_tokens}, the longest is number "
            f"{number} of {sizes.max()} tokens: raise --max-tokens"
        )
