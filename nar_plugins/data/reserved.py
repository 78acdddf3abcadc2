"""Reserved symbols as words of a text, such as a line about "the <pad> symbol".

To a parallel model ``<pad>`` and the mask are no words: a length is counted without the one, and the other is what
hides a word. So in the texts that such a model reads they are ``<unk>``, in training, validation, generation and
interactive translation alike. What decodes left to right reads them as fairseq does. ``<s>`` and ``</s>`` are embedded
like any word, and stay (BERT's ``[SEP]`` parts an answer from its passage).
"""

import logging
from typing import Dict, List, NamedTuple, Sequence

import numpy as np
from fairseq.data import BaseWrapperDataset, BucketPadLengthDataset, ConcatDataset, Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from torch import Tensor

from nar_plugins.data.dictionary import not_words

logger = logging.getLogger(__name__)

CHUNK = 1 << 22  # tokens looked at at once
MOST = 1 << 28  # tokens looked at of a file that is mapped into memory: a second
SAMPLE = 20_000  # sentences looked at in data of another kind, which are read one by one


class Counts(NamedTuple):
    """Which sentences hold reserved symbols inside."""

    sentences: Dict[int, int]  # symbol -> how many sentences hold it; only those that occur
    seen: int  # sentences looked at
    total: int  # sentences there are


def as_unknown(tokens: Tensor, symbols: Sequence[int], unk: int) -> Tensor:
    """Tokens (...) int64 with ``unk`` for all of ``symbols``; the tensor itself is left as it is."""
    for symbol in symbols:
        tokens = tokens.masked_fill(tokens.eq(symbol), unk)
    return tokens


class UnknownDataset(BaseWrapperDataset):
    """Sentences of token ids in which ``symbols`` are ``unk``."""

    def __init__(self, dataset, symbols: Sequence[int], unk: int):
        super().__init__(dataset)
        self.symbols, self.unk = symbols, unk

    def __getitem__(self, index: int) -> Tensor:
        return as_unknown(self.dataset[index], self.symbols, self.unk)


def readable(dataset, dictionary: Dictionary, name: str, parallel: bool, *more: int):
    """The sentences of one side as a model reads them; says in the log, in one line, what reserved symbols they hold.

    Args:
        dataset: token ids by sentence, as fairseq loads them.
        name: what the log calls them.
        parallel: whether the model cannot read padding and the mask as words.
        more: further symbols that it cannot read.
    """
    symbols = not_words(dictionary, *more)
    found = count(dataset, [*symbols, dictionary.bos(), dictionary.eos()], dictionary.eos())
    replaced = symbols if parallel else ()
    say(found, dictionary, name, symbols, replaced)
    everything = found.seen == found.total
    if not parallel or (everything and not set(symbols) & found.sentences.keys()):
        return dataset
    if isinstance(dataset, BucketPadLengthDataset):  # whose padding stays padding
        dataset.dataset = UnknownDataset(dataset.dataset, symbols, dictionary.unk())
        return dataset
    return UnknownDataset(dataset, symbols, dictionary.unk())


def say(found: Counts, dictionary: Dictionary, name: str, symbols: Sequence[int], replaced: Sequence[int]) -> None:
    """The log's line, where there is anything to say."""
    if not found.sentences:
        return
    of = f"of {found.seen:,} sentences" if found.seen == found.total else f"of the first {found.seen:,} sentences"
    each = [
        f"{dictionary[symbol]} in {sentences:,} {of} "
        f"({f'read as {dictionary.unk_word}' if symbol in replaced else 'kept'})"
        for symbol, sentences in sorted(found.sentences.items())
    ]
    level = logging.WARNING if set(symbols) & found.sentences.keys() else logging.INFO
    logger.log(level, f"{name}: reserved symbols as words of the text: {', '.join(each)}")


def count(dataset, symbols: Sequence[int], eos: int) -> Counts:
    """In how many sentences each of ``symbols`` stands; ``eos`` at a sentence's end is none of its words."""
    sentences, seen, total = dict.fromkeys(symbols, 0), 0, 0
    for part in parts(dataset):
        tokens, sizes = flat(part)
        for symbol, number in count_in(tokens, sizes, symbols, eos).items():
            sentences[symbol] += number
        seen, total = seen + len(sizes), total + len(part)
    return Counts({symbol: number for symbol, number in sentences.items() if number}, seen, total)


def parts(dataset) -> List:
    """The data sets that a data set is put together of, each once, as they lie in their files."""
    if isinstance(dataset, ConcatDataset):
        return [part for one in dataset.datasets for part in parts(one)]
    return parts(dataset.dataset) if isinstance(dataset, BaseWrapperDataset) else [dataset]


def flat(dataset) -> tuple:
    """The tokens of the first sentences one after the other, (n,) int, not copied where the file is mapped into memory;
    and the sentences' sizes."""
    if not isinstance(dataset, MMapIndexedDataset):
        first = range(min(len(dataset), SAMPLE))
        if getattr(dataset, "supports_prefetch", False):
            dataset.prefetch(first)
        sentences = [dataset[i].numpy() for i in first]
        sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.int64), *sentences]), sizes
    sizes = np.asarray(dataset.sizes, dtype=np.int64)
    sizes = sizes[: np.searchsorted(sizes.cumsum(), MOST, side="right")]
    return np.frombuffer(dataset._bin_buffer, dtype=dataset._index.dtype, count=sizes.sum()), sizes


def count_in(tokens: np.ndarray, sizes: np.ndarray, symbols: Sequence[int], eos: int) -> Dict[int, int]:
    """``count``, of the tokens (n,) of sentences of these sizes."""
    ends = sizes.cumsum() - 1
    found = {symbol: [] for symbol in symbols if symbol <= np.iinfo(tokens.dtype).max}
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        last = ends[slice(*np.searchsorted(ends, (start, start + len(chunk))))] - start
        for symbol, places in found.items():
            here = chunk == symbol
            if symbol == eos:
                here[last] = False
            places.append(np.flatnonzero(here) + start)
    # the sentence of a token is the first whose end does not stand before it
    return {
        symbol: len(np.unique(np.searchsorted(ends, np.concatenate(places)))) if places else 0
        for symbol, places in found.items()
    }
