"""Reserved symbols that occur as words of a text, such as a line about "the <pad> symbol".

A parallel model cannot read ``<pad>`` and the mask as words: lengths are counted without padding, and the mask marks a
hidden token. So both are replaced by ``<unk>`` in the texts of such a model, in training, validation, generation and
interactive translation. A model that decodes left to right reads them as fairseq does. ``<s>`` and ``</s>`` are
embedded like any word and are kept (BERT's ``[SEP]`` separates an answer from its passage).
"""

import logging
from typing import Dict, List, NamedTuple, Sequence

import numpy as np
from fairseq.data import BaseWrapperDataset, BucketPadLengthDataset, ConcatDataset, Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from torch import Tensor

from nar_plugins.data.dictionary import unreadable_symbols

logger = logging.getLogger(__name__)

CHUNK = 1 << 22  # tokens compared at once
MAX_TOKENS = 1 << 28  # tokens examined in a memory-mapped file: one second
MAX_SENTENCES = 20_000  # sentences examined in other formats, which are read one by one


class Counts(NamedTuple):
    """How many sentences contain each reserved symbol before their end."""

    sentences: Dict[int, int]  # symbol -> how many sentences contain it; only symbols that occur
    examined: int  # sentences examined
    total: int  # sentences in the data set


def as_unknown(tokens: Tensor, symbols: Sequence[int], unk: int) -> Tensor:
    """A copy of tokens (...) int64 with ``unk`` in place of each of ``symbols``."""
    for symbol in symbols:
        tokens = tokens.masked_fill(tokens.eq(symbol), unk)
    return tokens


class UnknownDataset(BaseWrapperDataset):
    """Sentences of token ids with ``unk`` in place of each of ``symbols``."""

    def __init__(self, dataset, symbols: Sequence[int], unk: int):
        super().__init__(dataset)
        self.symbols, self.unk = symbols, unk

    def __getitem__(self, index: int) -> Tensor:
        return as_unknown(self.dataset[index], self.symbols, self.unk)


def replace_reserved(dataset, dictionary: Dictionary, name: str, parallel: bool, *more: int):
    """The sentences of one side as a model reads them; one log line counts the reserved symbols in them.

    Args:
        dataset: token ids by sentence, as fairseq loads them.
        name: the side's name in the log.
        parallel: whether the model decodes in parallel, and so cannot read padding and the mask as words.
        more: further symbols that it cannot read.
    """
    symbols = unreadable_symbols(dictionary, *more)
    counts = count(dataset, [*symbols, dictionary.bos(), dictionary.eos()], dictionary.eos())
    log_counts(counts, dictionary, name, symbols, symbols if parallel else ())
    all_examined = counts.examined == counts.total
    if not parallel or (all_examined and not set(symbols) & counts.sentences.keys()):
        return dataset
    if isinstance(dataset, BucketPadLengthDataset):  # its own padding stays padding
        dataset.dataset = UnknownDataset(dataset.dataset, symbols, dictionary.unk())
        return dataset
    return UnknownDataset(dataset, symbols, dictionary.unk())


def log_counts(
    counts: Counts, dictionary: Dictionary, name: str, symbols: Sequence[int], replaced: Sequence[int]
) -> None:
    """Log which reserved symbols occur, in how many sentences; a warning if one of ``symbols`` does."""
    if not counts.sentences:
        return
    first = "" if counts.examined == counts.total else "the first "
    of = f"of {first}{counts.examined:,} sentences"
    each = [
        f"{dictionary[symbol]} in {sentences:,} {of} "
        f"({f'read as {dictionary.unk_word}' if symbol in replaced else 'kept'})"
        for symbol, sentences in sorted(counts.sentences.items())
    ]
    level = logging.WARNING if set(symbols) & counts.sentences.keys() else logging.INFO
    logger.log(level, f"{name}: reserved symbols as words of the text: {', '.join(each)}")


def count(dataset, symbols: Sequence[int], eos: int) -> Counts:
    """In how many sentences each of ``symbols`` occurs; the ``eos`` that ends a sentence does not count."""
    sentences, examined, total = dict.fromkeys(symbols, 0), 0, 0
    for part in parts(dataset):
        tokens, sizes = flat(part)
        for symbol, number in count_in(tokens, sizes, symbols, eos).items():
            sentences[symbol] += number
        examined, total = examined + len(sizes), total + len(part)
    return Counts({symbol: number for symbol, number in sentences.items() if number}, examined, total)


def parts(dataset) -> List:
    """The data sets, without wrappers, that a data set is concatenated from."""
    if isinstance(dataset, ConcatDataset):
        return [part for component in dataset.datasets for part in parts(component)]
    return parts(dataset.dataset) if isinstance(dataset, BaseWrapperDataset) else [dataset]


def flat(dataset) -> tuple:
    """The first sentences of a data set as flat arrays.

    Returns:
        tokens: (n,) int, the sentences concatenated; a view where the file is memory-mapped.
        sizes: (sentences,) int64, their lengths.
    """
    if not isinstance(dataset, MMapIndexedDataset):
        first = range(min(len(dataset), MAX_SENTENCES))
        if getattr(dataset, "supports_prefetch", False):
            dataset.prefetch(first)
        sentences = [dataset[i].numpy() for i in first]
        sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.int64), *sentences]), sizes
    sizes = np.asarray(dataset.sizes, dtype=np.int64)
    sizes = sizes[: np.searchsorted(sizes.cumsum(), MAX_TOKENS, side="right")]
    return np.frombuffer(dataset._bin_buffer, dtype=dataset._index.dtype, count=sizes.sum()), sizes


def count_in(tokens: np.ndarray, sizes: np.ndarray, symbols: Sequence[int], eos: int) -> Dict[int, int]:
    """``count`` for flat arrays, as ``flat`` returns them."""
    ends = sizes.cumsum() - 1
    indices = {symbol: [] for symbol in symbols if symbol <= np.iinfo(tokens.dtype).max}
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        last = ends[slice(*np.searchsorted(ends, (start, start + len(chunk))))] - start
        for symbol, positions in indices.items():
            matches = chunk == symbol
            if symbol == eos:
                matches[last] = False
            positions.append(np.flatnonzero(matches) + start)
    # a token belongs to the first sentence that does not end before it
    return {
        symbol: len(np.unique(np.searchsorted(ends, np.concatenate(positions)))) if positions else 0
        for symbol, positions in indices.items()
    }
