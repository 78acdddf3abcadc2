"""A word aligner: the one source word that every target word comes from.

It is IBM model 2 with a diagonal prior (Dyer et al. 2013, "A simple, fast, and effective reparameterization of IBM
model 2") and a Dirichlet prior on the translation table. It has no NULL word: every target word is linked to exactly
one source word, so that fertilities add up to the target's length.

Links are one int64 for every target word of every pair, in order: the position of its source word in its sentence, 0
where the source has no words. ``</s>`` is no word here.
"""

from typing import Iterator, Tuple

import numpy as np
import torch
from tqdm import tqdm

from nar_plugins.corpora.text import Text, first_of

CHUNK = 1 << 19  # links worked on at once
MOST_LINKS = 300_000_000  # of the pairs that are trained on: 5 GB and two minutes
FLOOR = 1e-9  # p(target word | source word) of two that were never seen together
TENSIONS = (0.1, 14.0)  # bounds of lambda
END = 1 << 62  # a key above those of words


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
