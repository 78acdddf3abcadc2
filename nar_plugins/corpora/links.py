"""Word alignments that were made elsewhere, in Pharaoh's format, and the fertilities that any alignments give.

``aligner.py`` says what one link a target word is.
"""

import re
from pathlib import Path
from typing import NamedTuple, Sequence, Tuple

import numpy as np

from nar_plugins.corpora.text import Text, first_of

MOST_UNLINKED = 0.9  # of the target words: refused
WARN_UNLINKED = 0.2
PHARAOH = re.compile(rb"\s*(\d{1,9}-\d{1,9}(\s+|\Z))*")


class Links(NamedTuple):
    """What a file in Pharaoh's format says, in its order."""

    pair: np.ndarray  # (links,) int64, the line, from 0
    source: np.ndarray  # (links,) int64, position of the word in its sentence
    target: np.ndarray  # (links,) int64


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
