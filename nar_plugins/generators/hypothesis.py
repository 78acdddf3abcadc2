"""From the tensors of a decoding loop to fairseq's hypotheses, and the removal of repetitions."""

from itertools import accumulate
from typing import Dict, Iterable, List

import torch
from torch import Tensor

from nar_plugins.data.dictionary import BertDictionary

BLANK = "\u2581"  # SentencePiece's mark of a word's start
RARE = 20  # what only one symbol in so many has is no mark


def hypothesis(tokens: Tensor, positional_scores: Tensor, score: float, steps: int, **extra) -> Dict:
    """One of fairseq's hypotheses.

    Args:
        tokens: (T,) int64 without padding, on the host.
        positional_scores: (T,) float32 log-probabilities; fairseq divides it in place, so it must be its own memory.
        score: what the hypotheses of a sentence are ordered by.
        steps: passes of the decoder.
    """
    return {
        "tokens": tokens,
        "positional_scores": positional_scores.clone(),
        "score": score,
        "steps": steps,
        "attention": None,
        "hypo_attn": None,
        "alignment": None,
        **extra,
    }


def greedy_hypothesis(tokens: Tensor, positional_scores: Tensor, accepted: List[int], options, **extra) -> Dict:
    """The hypothesis of a left-to-right decoder that decided ``accepted`` tokens in each of its calls.

    Args:
        tokens: (T,) int64. positional_scores: (T,). options: fairseq's ``GenerationConfig``.

    Returns:
        the hypothesis with ``accepted`` and, for --retain-iter-history, ``history``.
    """
    score = float(positional_scores.sum())
    if not options.unnormalized:
        score /= len(tokens) ** options.lenpen
    if options.retain_iter_history:
        extra["history"] = prefixes(tokens, accepted)
    return hypothesis(tokens, positional_scores, score, len(accepted), accepted=accepted, **extra)


def prefixes(tokens: Tensor, accepted: List[int]) -> List[Dict]:
    """The ``history`` of a left-to-right decoder: what of tokens (T,) was decided after each of its calls."""
    return [{"tokens": tokens[:end]} for end in accumulate(accepted)]


def empty_hypothesis(eos: int) -> Dict:
    """What an empty source is translated to, without any pass; whatever fairseq may print of a hypothesis is there."""
    return {**hypothesis(torch.tensor([eos]), torch.zeros(1), 0.0, 0), "alignment": [], "history": []}


class Dedup:
    """``--dedup``: drop consecutive repetitions from tokens, after decoding; the score stays that of all positions.

    A word is a run of subwords. SentencePiece marks its first subword with U+2581, BPE all but the last with @@,
    WordPiece all but the first with ##. In a dictionary of no such kind every token is a word.
    """

    def __init__(self, how: str, dictionary):
        self.how, self.eos = how, dictionary.eos()
        self.symbols = symbols = dictionary.symbols
        kind = self.kind = segmentation(dictionary)
        self.starts = [True] * len(symbols)
        self.continues = [False] * len(symbols)
        if kind == "SentencePiece":
            self.starts = [s.startswith(BLANK) for s in symbols]
        elif kind == "WordPiece":
            self.starts = [not s.startswith("##") for s in symbols]
        else:
            self.continues = [s.endswith("@@") for s in symbols]

    def keep(self, tokens: List[int]) -> List[int]:
        """The indices of the tokens that stay."""
        if self.how == "none":
            return list(range(len(tokens)))
        units = self.words(tokens) if self.how == "word" else [[i] for i in range(len(tokens))]
        kept, previous = [], None
        for unit in units:
            content = self.text(tokens[i] for i in unit)
            if content != previous:
                kept.extend(unit)
            previous = content
        return kept

    def text(self, unit: Iterable[int]):
        """What two units must have in common to be the same: the token, or the word, whatever pieces it is made of."""
        if self.how == "token":
            return list(unit)
        first, *others = (self.symbols[token] for token in unit)
        if self.kind == "SentencePiece":
            return "".join([first, *others]).replace(BLANK, "")
        if self.kind == "WordPiece":
            return "".join([first, *(other[2:] if other.startswith("##") else other for other in others)])
        return "".join(piece[:-2] if piece.endswith("@@") else piece for piece in (first, *others))

    def words(self, tokens: List[int]) -> List[List[int]]:
        """The indices of the tokens, word by word; ``</s>`` is a word of its own."""
        units, joined = [], False
        for i, token in enumerate(tokens):
            follows = bool(units) and tokens[i - 1] != self.eos and token != self.eos
            if follows and (joined or not self.starts[token]):
                units[-1].append(i)
            else:
                units.append([i])
            joined = self.continues[token]
        return units


def segmentation(dictionary) -> str:
    """``SentencePiece``, ``WordPiece``, or ``BPE``, which without any @@ is whole words: what most marks of a
    dictionary say.

    Any text may hold symbols that look like another kind's mark, so that a few of them decide nothing. The pieces of a
    SentencePiece model of characters have none but U+2581 itself; fairseq sorts a dictionary by frequency, and it is
    among the first there.
    """
    if isinstance(dictionary, BertDictionary):
        return "WordPiece"
    symbols = dictionary.symbols[dictionary.nspecial :]
    marked = {
        "BPE": sum(s.endswith("@@") for s in symbols),
        "SentencePiece": sum(s.startswith(BLANK) and s.strip(BLANK) != "" for s in symbols),
        "WordPiece": sum(s.startswith("##") and s.strip("#") != "" for s in symbols),
    }
    kind = max(marked, key=marked.get)  # of equally many the first
    if marked[kind] > len(symbols) // RARE:
        return kind
    return "SentencePiece" if not marked["BPE"] and BLANK in symbols[: len(symbols) // RARE] else "BPE"
