"""Refuse data that makes no sense, by name, before a training has begun."""
import glob
import logging
import os
import struct
from typing import Optional, Tuple

import numpy as np
import torch
from fairseq.data import ConcatDataset, TruncateDataset, data_utils

logger = logging.getLogger(__name__)

SAMPLE = 2000  # sentences looked at for the rate of <unk>
MOST_UNKNOWN = 1 / 3  # refused
WARN_UNKNOWN = 1 / 10


def check_languages(source: str, target: str) -> None:
    """Raise unless source and target are two languages: fairseq would read the same file for both."""
    if source == target:
        raise ValueError(f"source and target language are both '{source}': give --source-lang and --target-lang")


def infer_languages(folder: str) -> Tuple[str, str]:
    """Source and target language by the name of an index, such as train.en-de.en.idx.

    fairseq takes any file of such a name, and so one of ours, which can be of the other direction.

    Raises:
        ValueError: there is none.
    """
    for name in sorted(os.listdir(folder)):
        parts = name.split(".")
        if len(parts) == 4 and parts[3] == "idx" and parts[1].count("-") == 1:
            return tuple(parts[1].split("-"))
    raise ValueError(f"{folder} holds no split like train.de-en.de.idx: give --source-lang and --target-lang")


def check_files(folder: str, split: str, source: str, target: str, impl: Optional[str] = None) -> None:
    """Raise unless the split's two binarised files are there, whole, not empty and equally long.

    Args:
        impl: ``--dataset-impl``; raw text has other files and is left to fairseq.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"no data folder '{folder}': binarise the text with fairseq-preprocess first")
    if impl == "raw":
        return
    # as fairseq does, take data that were binarised for the other direction
    pairs = [f"{source}-{target}", f"{target}-{source}"]
    pair = next((p for p in pairs if glob.glob(os.path.join(glob.escape(folder), f"{split}.{p}.*.idx"))), pairs[0])
    lines = {}
    for side, language in (("source", source), ("target", target)):
        stem = os.path.join(folder, f"{split}.{pair}.{language}")
        for file in (f"{stem}.idx", f"{stem}.bin"):
            if not os.path.exists(file):
                raise ValueError(f"{split}: no {side} file {file}; binarise both sides (one side: fairseq-interactive)")
        lines[language] = count_sentences(stem, impl)
    if lines[source] != lines[target]:
        raise ValueError(f"{split}: {lines[source]} {source} but {lines[target]} {target} sentences: they are no pairs")


def check_text(stem: str, split: str, impl: Optional[str] = None) -> None:
    """Raise unless a split of text without a translation (STEM.idx, STEM.bin) is there, whole and not empty."""
    for file in (f"{stem}.idx", f"{stem}.bin"):
        if not os.path.exists(file):
            raise ValueError(f"{split}: no file {file}; binarise the text with fairseq-preprocess --only-source, without a language")
    count_sentences(stem, impl)


def count_sentences(stem: str, impl: Optional[str]) -> int:
    """Sentences in one side of a split; raises when its index or its data is cut short or foreign, or holds none."""
    if os.path.getsize(f"{stem}.bin") == 0:
        raise ValueError(f"{stem}.bin is empty: the split has no sentence")
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


def check_tokens(dataset, dictionary, name: str) -> None:
    """Raise when the tokens of one side cannot be of this dictionary: beyond its end, or mostly ``<unk>``.

    Args:
        dataset: token ids by sentence; the first ``SAMPLE`` are looked at.
        name: what the message calls it.
    """
    tokens = torch.cat([dataset[i] for i in range(min(len(dataset), SAMPLE))])
    words = tokens[tokens != dictionary.eos()]
    if int(tokens.max()) >= len(dictionary):
        raise ValueError(f"{name} has token {int(tokens.max())}, its dictionary ends at {len(dictionary) - 1}: "
                         "the data was binarised with another dictionary")  # fmt: skip
    unknown = float(words.eq(dictionary.unk()).float().mean()) if len(words) else 0.0
    if unknown > MOST_UNKNOWN:
        raise ValueError(f"{name}: {unknown:.0%} of the tokens are <unk>: was the text segmented as for its dictionary?")
    if unknown > WARN_UNKNOWN:
        logger.warning(f"{name}: {unknown:.0%} of the tokens are <unk>")


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
        raise ValueError(f"{more} of {len(sizes)} sentences are longer than --max-tokens {max_tokens}, the longest is number "
                         f"{number} of {sizes.max()} tokens: raise --max-tokens")  # fmt: skip
