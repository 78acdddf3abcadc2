"""Word alignments of other aligners, in Pharaoh's format, and the fertilities that follow from alignments.

``aligner.py`` defines the array of links, one per target word.
"""

import re
from pathlib import Path
from typing import NamedTuple, Sequence, Tuple

import numpy as np

from nar_plugins.corpora.text import Text, sentence_starts

MAX_UNLINKED = 0.9  # share of the target words; a higher one is refused
WARN_UNLINKED = 0.2
PHARAOH = re.compile(rb"\s*(\d{1,9}-\d{1,9}(\s+|\Z))*")


class Links(NamedTuple):
    """The links of a file in Pharaoh's format, in its order."""

    pair: np.ndarray  # (links,) int64, the line, from 0
    source: np.ndarray  # (links,) int64, position of the source word in its sentence
    target: np.ndarray  # (links,) int64, position of the target word in its sentence


def parse_links(path: Path, source_sizes: np.ndarray, target_sizes: np.ndarray) -> Links:
    """Read Pharaoh's format: one line per sentence pair, such as ``0-0 1-2``, source and target positions from 0.

    Args:
        source_sizes, target_sizes: (pairs,) int64, lengths in words.

    Raises:
        ValueError: the file has another format or another number of lines, or a link is out of range.
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
    source, target = np.array(numbers, dtype=np.int64).reshape(-1, 2).T

    n, m = source_sizes[pair], target_sizes[pair]
    outside = np.flatnonzero((source >= n) | (target >= m))
    if len(outside):
        k = outside[0]
        raise ValueError(
            f"{path}, line {pair[k] + 1}: link {source[k]}-{target[k]} is outside of {n[k]} source and {m[k]} target "
            "words, counted from 0 and without </s>"
        )
    return Links(pair, source, target)


def unlinked_share(links: Links, source_sizes: np.ndarray, target_sizes: np.ndarray) -> float:
    """The share of target words without a link, among pairs whose source has words."""
    linked = np.unique(sentence_starts(target_sizes)[links.pair] + links.target)
    possible = int(target_sizes[source_sizes > 0].sum())
    return 1 - len(linked) / possible if possible else 0.0


def check_links(links: Links, source: Text, target: Text, symbols: Tuple[Sequence[str], Sequence[str]], path) -> None:
    """Raise for links that were made from other text: nearly none, links of whole words, or links that end early.

    The intersection of both directions of an aligner links 55 to 87 % of the target's words or sub-words (Multi30k and
    Tatoeba, 1,000 to 12,000 sub-words). In 0.1 to 11 % of its pairs the last words of both sides are unlinked, most
    often if punctuation was removed. In as few of the pairs with split words all links would fit whole words, too.

    Args:
        symbols: those of the two dictionaries.
        path: the file, for the message.
    """
    n, m = source.sizes, target.sizes
    lines = np.unique(links.pair)
    if not len(n) or not int(m[n > 0].sum()):
        return
    what = "align the very text that was binarised, or leave --alignments out"
    share = unlinked_share(links, n, m)
    if share > MAX_UNLINKED:
        raise ValueError(
            f"{path} has no link for {share:.1%} of the target tokens (an aligner that ran out of memory leaves "
            f"blank lines): {what}"
        )
    last = [np.zeros(len(n), dtype=np.int64), np.zeros(len(n), dtype=np.int64)]
    for side, positions in zip(last, (links.source, links.target)):
        np.maximum.at(side, links.pair, positions)
    word_counts = [count_words(text, side) for text, side in zip((source, target), symbols)]
    split = lines[((word_counts[0] < n) | (word_counts[1] < m))[lines]]  # linked pairs with a word of several sub-words
    fits_words = ((last[0] < word_counts[0]) & (last[1] < word_counts[1]))[split]
    ends_early = ((last[0] < n - 1) & (last[1] < m - 1))[lines]
    for suspicious, why in (
        (fits_words, "the links are of whole words, and the data are sub-words"),
        (ends_early, "the links end before both sentences do, as those of other tokens would"),
    ):
        if len(suspicious) > 1 and suspicious.mean() > 1 / 2:
            raise ValueError(f"{path}: in {suspicious.sum():,} of {len(suspicious):,} lines {why}: {what}")


def count_words(text: Text, symbols: Sequence[str]) -> np.ndarray:
    """The number of words in every sentence of sub-words, (sentences,) int64.

    Words are recognised by the marker of BPE, WordPiece or SentencePiece that most symbols have. If no symbol has one,
    every token is a word.

    Args:
        symbols: the dictionary's.
    """
    boundaries = (  # for each kind of sub-words, the symbols that end (BPE) or begin a word
        ~np.array([s.endswith("@@") for s in symbols]),
        ~np.array([s.startswith("##") for s in symbols]),
        np.array([s.startswith("\u2581") for s in symbols]),
    )
    marked = [(~boundaries[0]).sum(), (~boundaries[1]).sum(), boundaries[2].sum()]
    is_boundary = boundaries[int(np.argmax(marked))] if max(marked) else np.ones(len(symbols))
    sentence = np.arange(len(text.sizes)).repeat(text.sizes)
    return np.bincount(sentence, is_boundary[text.tokens], minlength=len(text.sizes)).astype(np.int64)


def one_link_per_target(links: Links, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """Reduce links to one per target word.

    Of several links of a target word, the nearest to the diagonal is kept. A target word without a link takes that of
    the nearest target word that has one, or of the diagonal if none has. Ties go to the earlier position.
    """
    pair, source, target = links
    n, m = source_sizes[pair], target_sizes[pair]
    chosen = np.full(target_sizes.sum(), -1)
    word = sentence_starts(target_sizes)[pair] + target
    order = np.lexsort([source, np.abs((source + 1) * m - (target + 1) * n), word])
    word, nearest = np.unique(word[order], return_index=True)
    chosen[word] = source[order][nearest]
    return fill(chosen, source_sizes, target_sizes)


def fill(links: np.ndarray, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """Replace -1, no link, by the link of the nearest word in the sentence, or else by that of the diagonal."""
    word, none = np.arange(len(links)), links < 0
    begin = sentence_starts(target_sizes).repeat(target_sizes)
    n, m = source_sizes.repeat(target_sizes), target_sizes.repeat(target_sizes)
    before = np.maximum.accumulate(np.where(none, -1, word))
    after = np.minimum.accumulate(np.where(none, len(links), word)[::-1])[::-1]
    to_before = np.where(before >= begin, word - before, len(links))
    to_after = np.where(after < begin + m, after - word, len(links))
    neighbour = np.where(to_before <= to_after, before, after)
    no_neighbour = np.minimum(to_before, to_after) == len(links)
    diagonal = (2 * (word - begin + 1) * n + m - 1) // (2 * m) - 1  # the nearest position; ties go to the earlier
    return np.where(no_neighbour, diagonal.clip(0, np.maximum(n - 1, 0)), links[np.where(no_neighbour, 0, neighbour)])


def fertilities(links: np.ndarray, source_sizes: np.ndarray, target_sizes: np.ndarray) -> np.ndarray:
    """The number of target tokens linked to every source token; the two ``</s>`` are linked to each other.

    Args:
        links: one per target word.
        source_sizes, target_sizes: (pairs,) int64, lengths in words.

    Returns:
        (source tokens,) int64, the sentences concatenated. The ``</s>`` of a source without words has all target
        tokens.
    """
    tokens = source_sizes + 1
    counts = np.bincount(sentence_starts(tokens).repeat(target_sizes) + links, minlength=tokens.sum())
    counts[tokens.cumsum() - 1] += 1
    return counts
