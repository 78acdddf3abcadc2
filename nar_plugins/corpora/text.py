"""Binarised text as flat arrays, the aligner's input."""

import os
from typing import List, NamedTuple, Optional, Sequence, Union

import numpy as np
from fairseq.data import Dictionary, data_utils

from nar_plugins.data import checks
from nar_plugins.data.dictionary import load_dictionary, unreadable_symbols
from nar_plugins.data.splits import BINARISED, RAW, exists, find_stems


class Text(NamedTuple):
    """Sentences of token ids without ``</s>``, concatenated."""

    tokens: np.ndarray  # (tokens,) int
    sizes: np.ndarray  # (sentences,) int64

    @classmethod
    def of(cls, sentences: Union["Text", Sequence[Sequence[int]]]) -> "Text":
        if isinstance(sentences, cls):
            return sentences
        sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        return cls(np.array([token for sentence in sentences for token in sentence], dtype=np.int64), sizes)

    def select(self, keep: np.ndarray) -> "Text":
        """The sentences for which ``keep`` (sentences,) bool is True."""
        return Text(self.tokens[keep.repeat(self.sizes)], self.sizes[keep])


def sentence_starts(sizes: np.ndarray) -> np.ndarray:
    """The index of every sentence's first token in the flat array."""
    return sizes.cumsum() - sizes


def load_text(stem: str, eos: int, dictionary: Optional[Dictionary] = None) -> Text:
    """One side of a split in any of fairseq's formats; raises when a sentence does not end with ``</s>``.

    Args:
        dictionary: encodes raw text.
    """
    dataset = data_utils.load_indexed_dataset(stem, dictionary)
    sizes = np.array(dataset.sizes, dtype=np.int64)
    ends = sizes.cumsum()
    tokens = np.empty(sizes.sum(), dtype=np.int32)
    for i, (end, size) in enumerate(zip(ends.tolist(), sizes.tolist())):
        tokens[end - size : end] = dataset[i].numpy()
        if size == 0 or tokens[end - 1] != eos:
            raise ValueError(f"{stem}: sentence {i + 1} does not end with </s>: binarise it with fairseq-preprocess")
    return Text(np.delete(tokens, ends - 1), sizes - 1)


def load_pair(folder: str, split: str, source: str, target: str, home: str) -> List[Text]:
    """Both sides of a split, checked.

    Args:
        home: the folder with the dictionaries.

    Raises:
        ValueError: a file is missing, damaged, or does not fit its dictionary or the other side.
    """
    files = find_stems(folder, split, source, target)
    raw = any(not exists(file, [BINARISED]) and exists(file, [RAW]) for file in files)
    checks.check_files(folder, split, source, target, "raw" if raw else None)
    sides = []
    for file, dictionary in zip(files, load_dictionaries(home, source, target)):
        sides.append(load_text(file, dictionary.eos(), dictionary))
        checks.check_largest(sides[-1].tokens.max(initial=0), dictionary, file)
        unreadable = np.isin(sides[-1].tokens, unreadable_symbols(dictionary))
        sides[-1].tokens[unreadable] = dictionary.unk()  # as the model reads them
    checks.check_pairs(
        split, (source, target), [len(text.sizes) for text in sides]
    )  # check_files does not count raw text
    return sides


def load_dictionaries(folder: str, source: str, target: str) -> List[Dictionary]:
    return [load_dictionary(os.path.join(folder, f"dict.{language}.txt")) for language in (source, target)]
