"""A word aligner, which links every target word to one source word.

The model is IBM model 2 with a diagonal prior (Dyer et al. 2013, "A simple, fast, and effective reparameterization of
IBM model 2") and a Dirichlet prior on the translation table. It has no NULL word, so that every target word has a link
and fertilities add up to the target's length.

Links are an int64 array over the target words of all sentence pairs, in order: the position of the linked source word
in its sentence, 0 if the source has no words. ``</s>`` does not count as a word.
"""

from typing import Iterator, Tuple

import numpy as np
import torch
from tqdm import tqdm

from nar_plugins.corpora.text import Text, sentence_starts

CHUNK = 1 << 19  # possible links processed at once
MAX_LINKS = 300_000_000  # possible links of the training pairs: 5 GB and two minutes
FLOOR = 1e-9  # p(target word | source word) of words that never co-occur
TENSIONS = (0.1, 14.0)  # bounds of lambda
END = 1 << 62  # a key above those of all word pairs


def distance(n: int, m: int) -> np.ndarray:
    """The distance |i/m - j/n| of source position j and target position i, both from 1: (N, M)."""
    return np.abs(np.arange(1, n + 1)[:, None] / n - np.arange(1, m + 1) / m)


def shapes(source: Text, target: Text) -> Tuple[np.ndarray, np.ndarray]:
    """The distinct (source, target) lengths, (shapes, 2), and their counts; pairs with an empty side are left out."""
    sizes = np.stack([source.sizes, target.sizes], 1)
    return np.unique(sizes[sizes.min(1) > 0], axis=0, return_counts=True)


class Aligner:
    """IBM model 2 with a diagonal prior: ``train`` on some sentence pairs, ``align`` these or others.

    Pairs are processed in chunks of equal lengths. Memory: training takes 4 bytes for every possible link (source times
    target length, over all pairs) and about 70 for every pair of co-occurring words; aligning takes 12 for the latter.

    Args:
        alpha: concentration of the Dirichlet prior; small, so that rare words do not link to all their neighbours.
        tension: initial lambda of the diagonal prior; it is trained.
        chunk: possible links processed at once; it changes memory and speed only.
        progress: show progress bars on a terminal.
    """

    def __init__(self, alpha: float = 0.01, tension: float = 4.0, chunk: int = CHUNK, progress: bool = False):
        self.alpha, self.tension, self.chunk, self.progress = alpha, tension, chunk, progress
        self.keys = np.array([END])  # the co-occurring word pairs, sorted
        # p(target word | source word) of each; the last entry is that of all other pairs
        self.table = np.array([FLOOR], dtype=np.float32)

    def train(self, source, target, iterations: int = 5, most_links: int = MAX_LINKS) -> int:
        """Expectation maximisation from a uniform table; returns the number of sentence pairs used.

        Args:
            source, target: ``Text``, or a list of token ids per sentence.
            most_links: if the pairs have more possible links, evenly spaced pairs with about this many are used.
        """
        if min(iterations, most_links) < 1:
            raise ValueError(f"{iterations} iterations over at most {most_links} links: at least one is needed of both")
        source, target = Text.of(source), Text.of(target)
        share = min(1.0, most_links / max(1, int((source.sizes * target.sizes).sum())))
        keep = np.diff((np.arange(len(source.sizes) + 1) * share).astype(np.int64)) > 0
        source, target = source.select(keep), target.select(keep)

        self.keys = self.cooccurrences(source, target)
        self.table = np.ones(len(self.keys), dtype=np.float32)
        source_index = np.append(0, (np.diff(self.keys >> 32) > 0).cumsum())  # of the source word of each key
        partners = np.bincount(source_index)  # target words that co-occur with each source word
        lengths, counts = shapes(source, target)
        links = [self.lookup(keys).astype(np.int32) for _, keys in self.chunks(source, target, "table")]
        for i in range(iterations):
            expected, total_distance = np.zeros(len(self.keys)), 0.0
            for index in self.bar(links, desc=f"iteration {i + 1}"):
                distances = distance(*index.shape[:2])
                posterior = self.unnormalised_posterior(index, distances)
                posterior /= posterior.sum(0)
                total_distance += float((posterior.sum(2, dtype=np.float64) * distances).sum())
                np.add.at(expected, index.ravel().astype(np.int64), posterior.ravel().astype(np.float64))
            totals = np.bincount(source_index, expected)
            logs = digamma(expected + self.alpha) - digamma(totals + self.alpha * partners)[source_index]
            self.table = np.exp(logs).clip(FLOOR).astype(np.float32)
            self.table[-1] = FLOOR
            self.fit_tension(lengths, counts, total_distance)
        return int(keep.sum())

    def align(self, source, target) -> np.ndarray:
        """The most probable links; words that never co-occurred in training are linked along the diagonal."""
        source, target = Text.of(source), Text.of(target)
        links, starts = np.zeros(target.sizes.sum(), dtype=np.int64), sentence_starts(target.sizes)
        for pairs, keys in self.chunks(source, target, "links"):
            n, m, _ = keys.shape
            posterior = self.unnormalised_posterior(self.lookup(keys), distance(n, m))
            links[starts[pairs] + np.arange(m)[:, None]] = posterior.argmax(0)
        return links

    def chunks(self, source: Text, target: Text, description: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """All sentence pairs with words on both sides, in batches of equal lengths.

        Args:
            description: label of the progress bar.

        Yields:
            pairs: (B,) indices of the pairs.
            keys: (N, M, B) int64, a key for every word pair: the source word's id in the high half.
        """
        order = np.lexsort([target.sizes, source.sizes])
        order = order[np.minimum(source.sizes, target.sizes)[order] > 0]
        source_starts, target_starts = sentence_starts(source.sizes), sentence_starts(target.sizes)
        lengths, counts = shapes(source, target)
        with self.bar(total=int(lengths.prod(1) @ counts), desc=description, unit="link", unit_scale=True) as bar:
            for (n, m), same in zip(lengths, np.split(order, counts.cumsum()[:-1])):
                step = max(1, self.chunk // (n * m))
                for pairs in np.split(same, range(step, len(same), step)):
                    high = source.tokens[source_starts[pairs] + np.arange(n)[:, None]].astype(np.int64) << 32
                    yield pairs, high[:, None] | target.tokens[target_starts[pairs] + np.arange(m)[:, None]]
                    bar.update(n * m * len(pairs))

    def bar(self, *args, **kwargs) -> tqdm:
        return tqdm(*args, leave=False, disable=None if self.progress else True, **kwargs)

    def cooccurrences(self, source: Text, target: Text) -> np.ndarray:
        """The keys of all co-occurring word pairs, sorted, then ``END``."""
        merged, new = np.array([END]), []
        for _, keys in self.chunks(source, target, "words"):
            new.append(distinct(keys.ravel()))
            if sum(map(len, new)) > len(merged) + self.chunk:
                merged, new = distinct(np.concatenate([merged, *new])), []
        return distinct(np.concatenate([merged, *new]))

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """The table index of every key, in the same shape; the last index for a key that is not in the table."""
        unique, inverse = np.unique(keys, return_inverse=True)  # searchsorted is much faster for sorted keys
        index = np.searchsorted(self.keys, unique)
        index[self.keys[index] != unique] = len(self.keys) - 1
        return index[inverse].reshape(keys.shape)

    def unnormalised_posterior(self, index: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """p(target word | source word) times the unnormalised diagonal prior: (N, M, B) from (N, M, B) and (N, M)."""
        return self.table.take(index) * np.exp(-self.tension * distances).astype(np.float32)[..., None]

    def fit_tension(self, lengths: np.ndarray, counts: np.ndarray, total_distance: float, steps: int = 5) -> None:
        """Fit lambda by Newton steps, until the prior expects the posterior's distance from the diagonal.

        Args:
            lengths, counts: as ``shapes`` returns them.
            total_distance: expected distance under the posterior, summed over all target words.
        """
        for _ in range(steps):
            mean = variance = 0.0
            for (n, m), count in zip(lengths, counts):
                distances = distance(n, m)
                prior = np.exp(-self.tension * distances)
                prior /= prior.sum(0)
                expected = (prior * distances).sum(0)
                mean += count * expected.sum()
                variance += count * ((prior * distances**2).sum(0) - expected**2).sum()
            if variance > 0:
                self.tension = float(np.clip(self.tension + (mean - total_distance) / variance, *TENSIONS))


def distinct(keys: np.ndarray) -> np.ndarray:
    """The distinct keys, sorted; faster than np.unique, which uses a hash table."""
    keys.sort()
    return keys[np.append(True, keys[1:] != keys[:-1])]


def digamma(x: np.ndarray) -> np.ndarray:
    return torch.special.digamma(torch.from_numpy(x)).numpy()
