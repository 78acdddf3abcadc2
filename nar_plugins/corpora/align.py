"""Word alignments: the one source word that every target word comes from, and so every source word's fertility.

The aligner is IBM model 2 with a diagonal prior (Dyer et al. 2013, "A simple, fast, and effective reparameterization of
IBM model 2") and a Dirichlet prior on the translation table. It has no NULL word: every target word is linked to
exactly one source word, so that fertilities add up to the target's length.

Links are one int64 for every target word of every pair, in order: the position of its source word in its sentence, 0
where the source has no words. ``</s>`` is no word here; ``fertilities`` ties it to ``</s>``.
"""

import re
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils
from tqdm import tqdm

CHUNK = 1 << 19  # links worked on at once
MOST_LINKS = 300_000_000  # of the pairs that are trained on: 5 GB and two minutes
FLOOR = 1e-9  # p(target word | source word) of two that were never seen together
TENSIONS = (0.1, 14.0)  # bounds of lambda
MOST_UNLINKED = 0.9  # of the target words, in links from elsewhere: refused
WARN_UNLINKED = 0.2
END = 1 << 62  # a key above those of words
PHARAOH = re.compile(rb"\s*(\d{1,9}-\d{1,9}(\s+|\Z))*")


class Text(NamedTuple):
    """Sentences of token ids, without ``</s>``, one after the other."""

    tokens: np.ndarray  # (all words,) int
    sizes: np.ndarray  # (sentences,) int64

    @classmethod
    def of(cls, sentences: Union["Text", Sequence[Sequence[int]]]) -> "Text":
        if isinstance(sentences, cls):
            return sentences
        sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        return cls(np.array([token for sentence in sentences for token in sentence], dtype=np.int64), sizes)

    def only(self, keep: np.ndarray) -> "Text":
        """The sentences where ``keep``, (sentences,) bool, is True."""
        return Text(self.tokens[keep.repeat(self.sizes)], self.sizes[keep])


def load_text(stem: str, eos: int, dictionary: Optional[Dictionary] = None) -> Text:
    """One side of a split, in whatever format it is; raises when a sentence does not end with ``</s>``.

    Args:
        dictionary: for raw text.
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


def first_of(sizes: np.ndarray) -> np.ndarray:
    """Where every sentence begins among all words."""
    return sizes.cumsum() - sizes


# -- the aligner -------------------------------------------------------------------------------------------------------


def distance(n: int, m: int) -> np.ndarray:
    """How far every source position j is from every target position i: |i/m - j/n|, counted from 1. (N, M)."""
    return np.abs(np.arange(1, n + 1)[:, None] / n - np.arange(1, m + 1) / m)


def shapes(source: Text, target: Text) -> Tuple[np.ndarray, np.ndarray]:
    """The pairs of lengths that occur, (shapes, 2), and how often; without those of an empty side."""
    sizes = np.stack([source.sizes, target.sizes], 1)
    return np.unique(sizes[sizes.min(1) > 0], axis=0, return_counts=True)


class Aligner:
    """IBM model 2 with a diagonal prior: ``train`` on some pairs, ``align`` these or others.

    Pairs are worked on in chunks of equal lengths. Memory in training: 4 bytes for every possible link (source times
    target length, over all pairs) and about 70 for every two words that occur together; in aligning: 12 for the latter.

    Args:
        alpha: of the Dirichlet prior; small, so that a rare word is not tied to everything around it.
        tension: lambda of the diagonal prior, to begin with; it is trained.
        chunk: possible links worked on at once; a matter of memory and speed alone.
        progress: show bars, on a terminal.
    """

    def __init__(self, alpha: float = 0.01, tension: float = 4.0, chunk: int = CHUNK, progress: bool = False):
        self.alpha, self.tension, self.chunk, self.progress = alpha, tension, chunk, progress
        self.keys = np.array([END])  # every two words that were seen together, sorted
        self.table = np.array(
            [FLOOR], dtype=np.float32
        )  # p(target word | source word) of each; the last: of any others

    def train(self, source, target, iterations: int = 5, most_links: int = MOST_LINKS) -> int:
        """Expectation maximisation from a uniform table; how many pairs were used.

        Args:
            source, target: ``Text``, or a list of token ids a sentence.
            most_links: where more links are possible, evenly spaced pairs with about so many are used.
        """
        if min(iterations, most_links) < 1:
            raise ValueError(f"{iterations} iterations over at most {most_links} links: at least one is needed of both")
        source, target = Text.of(source), Text.of(target)
        share = min(1.0, most_links / max(1, int((source.sizes * target.sizes).sum())))
        keep = np.diff((np.arange(len(source.sizes) + 1) * share).astype(np.int64)) > 0
        source, target = source.only(keep), target.only(keep)

        self.keys = self.seen(source, target)
        self.table = np.ones(len(self.keys), dtype=np.float32)
        rows = np.append(0, (np.diff(self.keys >> 32) > 0).cumsum())  # number the source words
        columns = np.bincount(rows)
        lengths, counts = shapes(source, target)
        links = [self.find(keys).astype(np.int32) for _, keys in self.chunks(source, target, "table")]
        for i in range(iterations):
            expected, far = np.zeros(len(self.keys)), 0.0
            for index in self.bar(links, desc=f"iteration {i + 1}"):
                away = distance(*index.shape[:2])
                posterior = self.weigh(index, away)
                posterior /= posterior.sum(0)
                far += float((posterior.sum(2, dtype=np.float64) * away).sum())
                np.add.at(expected, index.ravel().astype(np.int64), posterior.ravel().astype(np.float64))
            totals = np.bincount(rows, expected)
            logs = digamma(expected + self.alpha) - digamma(totals + self.alpha * columns)[rows]
            self.table = np.exp(logs).clip(FLOOR).astype(np.float32)
            self.table[-1] = FLOOR
            self.fit_tension(lengths, counts, far)
        return int(keep.sum())

    def align(self, source, target) -> np.ndarray:
        """The most probable links; what was never seen together is linked along the diagonal."""
        source, target = Text.of(source), Text.of(target)
        links, first = np.zeros(target.sizes.sum(), dtype=np.int64), first_of(target.sizes)
        for pairs, keys in self.chunks(source, target, "links"):
            n, m, _ = keys.shape
            links[first[pairs] + np.arange(m)[:, None]] = self.weigh(self.find(keys), distance(n, m)).argmax(0)
        return links

    def chunks(self, source: Text, target: Text, what: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """All pairs with words in both sides, those of the same lengths together.

        Yields:
            pairs: (B,) their numbers.
            keys: (N, M, B) int64, a number for every two words: the source word's in the high half.
        """
        order = np.lexsort([target.sizes, source.sizes])
        order = order[np.minimum(source.sizes, target.sizes)[order] > 0]
        left, right = first_of(source.sizes), first_of(target.sizes)
        lengths, counts = shapes(source, target)
        with self.bar(total=int(lengths.prod(1) @ counts), desc=what, unit="link", unit_scale=True) as bar:
            for (n, m), same in zip(lengths, np.split(order, counts.cumsum()[:-1])):
                step = max(1, self.chunk // (n * m))
                for pairs in np.split(same, range(step, len(same), step)):
                    words = source.tokens[left[pairs] + np.arange(n)[:, None]].astype(np.int64) << 32
                    yield pairs, words[:, None] | target.tokens[right[pairs] + np.arange(m)[:, None]]
                    bar.update(n * m * len(pairs))

    def bar(self, *args, **kwargs) -> tqdm:
        return tqdm(*args, leave=False, disable=None if self.progress else True, **kwargs)

    def seen(self, source: Text, target: Text) -> np.ndarray:
        """The keys of all words that occur together, sorted, and ``END``."""
        known, new = np.array([END]), []
        for _, keys in self.chunks(source, target, "words"):
            new.append(distinct(keys.ravel()))
            if sum(map(len, new)) > len(known) + self.chunk:
                known, new = distinct(np.concatenate([known, *new])), []
        return distinct(np.concatenate([known, *new]))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The place in the table of every key, of any shape; the last for one that is not in it."""
        unique, inverse = np.unique(keys, return_inverse=True)  # a search for sorted keys is much the faster
        place = np.searchsorted(self.keys, unique)
        place[self.keys[place] != unique] = len(self.keys) - 1
        return place[inverse].reshape(keys.shape)

    def weigh(self, index: np.ndarray, away: np.ndarray) -> np.ndarray:
        """p(target word | source word) times the diagonal prior, but for a factor of each target position. (N, M, "
        "B)."""
        return self.table.take(index) * np.exp(-self.tension * away).astype(np.float32)[..., None]

    def fit_tension(self, lengths: np.ndarray, counts: np.ndarray, far: float, steps: int = 5) -> None:
        """The lambda whose prior expects the distance that the posterior has: Newton's steps up the likelihood.

        Args:
            lengths, counts: of ``shapes``.
            far: the posterior's distance, summed over all target words.
        """
        for _ in range(steps):
            mean = variance = 0.0
            for (n, m), count in zip(lengths, counts):
                away = distance(n, m)
                prior = np.exp(-self.tension * away)
                prior /= prior.sum(0)
                expected = (prior * away).sum(0)
                mean += count * expected.sum()
                variance += count * ((prior * away**2).sum(0) - expected**2).sum()
            if variance > 0:
                self.tension = float(np.clip(self.tension + (mean - far) / variance, *TENSIONS))


def distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once; np.unique's way (a hash table, lately) is slower."""
    keys.sort()
    return keys[np.append(True, keys[1:] != keys[:-1])]


def digamma(x: np.ndarray) -> np.ndarray:
    return torch.special.digamma(torch.from_numpy(x)).numpy()


# -- links from elsewhere, and what becomes of links
# ---------------------------------------------------------------------


class Links(NamedTuple):
    """What a file in Pharaoh's format says, in its order."""

    pair: np.ndarray  # (links,) int64, the line, from 0
    source: np.ndarray  # (links,) int64, position of the word in its sentence
    target: np.ndarray  # (links,) int64


def read_links(path: Path, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """One link a target word, of a file in Pharaoh's format; see ``parse_links`` and ``one_each``."""
    return one_each(parse_links(path, source_sizes, target_sizes), source_sizes, target_sizes)


def parse_links(path: Path, source_sizes: np.ndarray, target_sizes: np.ndarray) -> Links:
    """All links of a file in Pharaoh's format: one line a pair, ``0-0 1-2``, source and target positions of words, from
    0.

    Args:
        source_sizes, target_sizes: (pairs,) int64, lengths in words.

    Raises:
        ValueError: it has another format or another number of lines, or a link points outside of its pair.
    """
    lines = Path(path).read_bytes().splitlines() if Path(path).is_file() else None
    if lines is None:
        raise ValueError(f"no alignments {path}")
    if len(lines) != len(source_sizes):
        raise ValueError(f"{path} has {len(lines)} lines, the split {len(source_sizes)} pairs")
    for i, line in enumerate(lines):
        if not PHARAOH.fullmatch(line):
            field = next(field for field in line.split() if not PHARAOH.fullmatch(field))
            raise ValueError(f"{path}, line {i + 1}: '{field.decode(errors='replace')}' is no link like 0-0")
    pair = np.arange(len(lines)).repeat([line.count(b"-") for line in lines])
    numbers = b" ".join(lines).replace(b"-", b" ").split()
    j, i = np.array(numbers, dtype=np.int64).reshape(-1, 2).T

    n, m = source_sizes[pair], target_sizes[pair]
    outside = np.flatnonzero((j >= n) | (i >= m))
    if len(outside):
        k = outside[0]
        raise ValueError(
            f"{path}, line {pair[k] + 1}: link {j[k]}-{i[k]} is outside of {n[k]} source and {m[k]} target "
            "words, counted from 0 and without </s>"
        )
    return Links(pair, j, i)


def unlinked(links: Links, source_sizes: np.ndarray, target_sizes: np.ndarray) -> float:
    """The share of the target words without a link, of those whose source has words."""
    linked = np.unique(first_of(target_sizes)[links.pair] + links.target)
    possible = int(target_sizes[source_sizes > 0].sum())
    return 1 - len(linked) / possible if possible else 0.0


def check_links(links: Links, source: Text, target: Text, symbols: Tuple[Sequence[str], Sequence[str]], path) -> None:
    """Raise for links that cannot be of these sentences, because there are hardly any or they are of other words.

    A real aligner's intersection of both directions links 55 to 87 % of the target's words or sub-words (Multi30k and
    Tatoeba, 1,000 to 12,000 pieces). The last words of both sides are unlinked in 0.1 to 11 % of its pairs, the most
    where punctuation was taken out, and in as few of those with sub-words all links would be links of words too.

    Args:
        symbols: of the two dictionaries.
        path: the file, for the message.
    """
    n, m = source.sizes, target.sizes
    lines = np.unique(links.pair)
    if not len(n) or not int(m[n > 0].sum()):
        return
    what = "align the very text that was binarised, or leave --alignments out"
    share = unlinked(links, n, m)
    if share > MOST_UNLINKED:
        raise ValueError(
            f"{path} has no link for {share:.1%} of the target tokens (an aligner that ran out of memory leaves "
            f"blank lines): {what}"
        )
    last = [np.zeros(len(n), dtype=np.int64), np.zeros(len(n), dtype=np.int64)]
    for side, word in zip(last, (links.source, links.target)):
        np.maximum.at(side, links.pair, word)
    words = [count_words(text, side) for text, side in zip((source, target), symbols)]
    broken = lines[((words[0] < n) | (words[1] < m))[lines]]  # pairs with links in which a word is in pieces
    of_words = ((last[0] < words[0]) & (last[1] < words[1]))[broken]
    early = ((last[0] < n - 1) & (last[1] < m - 1))[lines]
    for found, why in (
        (of_words, "the links are of whole words, and the data are sub-words"),
        (early, "the links end before both sentences do, as those of other tokens would"),
    ):
        if len(found) > 1 and found.mean() > 1 / 2:
            raise ValueError(f"{path}: in {found.sum():,} of {len(found):,} lines {why}: {what}")


def count_words(text: Text, symbols: Sequence[str]) -> np.ndarray:
    """How many words the sub-words of every sentence make up, by the marks of BPE, SentencePiece or WordPiece.
    (sentences,)

    The mark that most symbols have counts; where none has one, every token is a word.

    Args:
        symbols: of the dictionary.
    """
    whole = (  # of each kind, the symbols with which a word ends or begins
        ~np.array([s.endswith("@@") for s in symbols]),
        ~np.array([s.startswith("##") for s in symbols]),
        np.array([s.startswith("\u2581") for s in symbols]),
    )
    marked = [(~whole[0]).sum(), (~whole[1]).sum(), whole[2].sum()]
    one = whole[int(np.argmax(marked))] if max(marked) else np.ones(len(symbols))
    sentence = np.arange(len(text.sizes)).repeat(text.sizes)
    return np.bincount(sentence, one[text.tokens], minlength=len(text.sizes)).astype(np.int64)


def one_each(links: Links, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """One link a target word.

    Of several links of a target word the one nearest the diagonal counts, of two as near the earlier. A target word
    without any takes the source word of its nearest neighbour that has one, of two as near the earlier's; where no word
    has one, that on the diagonal.
    """
    pair, j, i = links
    n, m = source_sizes[pair], target_sizes[pair]
    chosen = np.full(target_sizes.sum(), -1)
    word = first_of(target_sizes)[pair] + i
    order = np.lexsort([j, np.abs((j + 1) * m - (i + 1) * n), word])
    word, nearest = np.unique(word[order], return_index=True)
    chosen[word] = j[order][nearest]
    return fill(chosen, source_sizes, target_sizes)


def fill(links: np.ndarray, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """Give target words without a link, -1, that of the nearest word in their sentence, or else the diagonal's."""
    word, none = np.arange(len(links)), links < 0
    begin = first_of(target_sizes).repeat(target_sizes)
    n, m = source_sizes.repeat(target_sizes), target_sizes.repeat(target_sizes)
    before = np.maximum.accumulate(np.where(none, -1, word))
    after = np.minimum.accumulate(np.where(none, len(links), word)[::-1])[::-1]
    to_before = np.where(before >= begin, word - before, len(links))
    to_after = np.where(after < begin + m, after - word, len(links))
    neighbour = np.where(to_before <= to_after, before, after)
    alone = np.minimum(to_before, to_after) == len(links)
    diagonal = (2 * (word - begin + 1) * n + m - 1) // (2 * m) - 1  # the nearest, of two as near the earlier
    return np.where(alone, diagonal.clip(0, np.maximum(n - 1, 0)), links[np.where(alone, 0, neighbour)])


def fertilities(links: np.ndarray, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """How many target tokens every source token has, ``</s>`` counted on both sides and tied together.

    Args:
        links: one for every target word.
        source_sizes, target_sizes: (pairs,) int64, lengths in words.

    Returns:
        (all source tokens,) int64, one sentence after the other. A source without words has all in its ``</s>``.
    """
    tokens = source_sizes + 1
    counts = np.bincount(first_of(tokens).repeat(target_sizes) + links, minlength=tokens.sum())
    counts[tokens.cumsum() - 1] += 1
    return counts
