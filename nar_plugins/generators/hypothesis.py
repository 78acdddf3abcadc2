"""From the tensors of a decoding loop to fairseq's hypotheses, and the removal of repetitions."""
from typing import Dict, Iterable, List

import torch
from torch import Tensor

from nar_plugins.data.dictionary import BertDictionary


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
        extra["history"] = [{"tokens": tokens[: sum(accepted[: i + 1])]} for i in range(len(accepted))]
    return hypothesis(tokens, positional_scores, score, len(accepted), accepted=accepted, **extra)


def empty_hypothesis(eos: int) -> Dict:
    """What an empty source is translated to."""
    return hypothesis(torch.tensor([eos]), torch.zeros(1), 0.0, 0)


class Dedup:
    """``--dedup``: drop consecutive repetitions from tokens, after decoding; the score stays that of all positions.

    A word is a run of subwords: SentencePiece starts one with U+2581, BPE ends every other subword with @@, WordPiece starts
    every other one with ##, and in a dictionary of no such kind every token is a word.
    """

    def __init__(self, how: str, dictionary):
        self.how, self.eos = how, dictionary.eos()
        self.symbols = symbols = dictionary.symbols
        if isinstance(dictionary, BertDictionary):
            self.starts = [not s.startswith("##") for s in symbols]
            self.continues = [False] * len(symbols)
        elif any(s.startswith("\u2581") for s in symbols):
            self.starts = [s.startswith("\u2581") for s in symbols]
            self.continues = [False] * len(symbols)
        else:
            self.starts = [True] * len(symbols)
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
        pieces = [first, *(other[2:] if other.startswith("##") else other for other in others)]
        return "".join(piece[:-2] if piece.endswith("@@") else piece for piece in pieces).replace("\u2581", "")

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
