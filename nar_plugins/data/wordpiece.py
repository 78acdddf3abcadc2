"""BERT's tokeniser (Devlin et al. 2019) as fairseq's ``--bpe wordpiece``.

Text is split into basic tokens, and these into the longest pieces in the vocabulary. A piece inside a word begins with
``##``. Decoding joins the pieces of a word; punctuation stays separated by blanks.
"""

import functools
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Collection, List, Optional

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from nar_plugins.data.dictionary import join_pieces

MAX_CHARACTERS = 100  # of a word; a longer word is [UNK], as in BERT
UNKNOWN = "[UNK]"
REQUIRED = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))  # BERT's ranges


def read_vocabulary(path: Path) -> List[str]:
    """The symbols of a vocab.txt (one per line), or of the dictionary that was made from it ("symbol count").

    Raises:
        ValueError: a line is malformed or a duplicate, or a required symbol is missing; the first is named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no vocabulary {path}: give BERT's vocab.txt")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): give BERT's vocab.txt") from error
    lines = text.split("\n")  # not splitlines: a symbol may contain what Python calls a line end
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise ValueError(f"{path} is empty: give BERT's vocab.txt")
    counted = all(line.rpartition(" ")[0] and line.rpartition(" ")[2].isdigit() for line in lines)
    symbols = [line.rpartition(" ")[0] for line in lines] if counted else lines
    first_at = {}
    for number, symbol in enumerate(symbols, 1):
        if not symbol.strip():
            raise ValueError(f"{path}, line {number} is empty: every line is one symbol")
        if any(c in " \t\r" for c in symbol):
            raise ValueError(f"{path}, line {number}: '{symbol.strip()}' is more than one symbol")
        if first_at.setdefault(symbol, number) != number:
            raise ValueError(f"{path}, line {number}: '{symbol}' is in line {first_at[symbol]} already")
    absent = [symbol for symbol in REQUIRED if symbol not in first_at]
    if absent:
        raise ValueError(f"{path} has no {absent[0]}: a BERT vocabulary has {', '.join(REQUIRED)}")
    if symbols[0] != "[PAD]":
        raise ValueError(f"{path} begins with '{symbols[0]}': a BERT vocabulary begins with [PAD]")
    return symbols


def basic_tokens(text: str, cased: bool = False, whole: Collection[str] = ()) -> List[str]:
    """Words and single punctuation marks; lower case without accents unless ``cased``.

    Args:
        whole: words that are not changed.
    """
    tokens = []
    for word in "".join(map(spaced, text)).split():
        if word in whole:
            tokens.append(word)
            continue
        if not cased:
            word = "".join(c for c in unicodedata.normalize("NFD", lowered(word)) if unicodedata.category(c) != "Mn")
        tokens += "".join(f" {c} " if is_punctuation(c) else c for c in word).split()
    return tokens


def lowered(word: str) -> str:
    """Lower case, character by character as in transformers' tokenisers: a final capital sigma becomes a plain one."""
    return "".join(c.lower() for c in word)


def spaced(c: str) -> str:
    """A character after cleaning: white space becomes a blank, CJK is surrounded by blanks, control characters vanish.

    Of the control characters only tab and line ends are white space; Python's ``isspace`` accepts more.
    """
    if c in "\t\n\r":
        return " "
    if c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs"):
        return ""
    if c.isspace():
        return " "
    return f" {c} " if any(low <= ord(c) <= high for low, high in CJK) else c


def is_punctuation(c: str) -> bool:
    """Whether a character is Unicode punctuation, or ASCII and neither letter, digit nor blank."""
    return unicodedata.category(c).startswith("P") or (c.isascii() and c.isprintable() and not c.isalnum() and c != " ")


@dataclass
class WordPieceConfig(FairseqDataclass):
    wordpiece_vocab: Optional[str] = field(
        default=None, metadata={"help": "BERT's vocab.txt, or the dictionary that nar-convert bert-vocab makes from it"}
    )
    wordpiece_cased: bool = field(default=False, metadata={"help": "keep case and accents; for a cased vocabulary"})


@register_bpe("wordpiece", dataclass=WordPieceConfig)
class WordPiece:
    """Encodes text as WordPiece sub-words, and decodes it."""

    def __init__(self, cfg):
        if not cfg.wordpiece_vocab:
            raise ValueError("--bpe wordpiece needs --wordpiece-vocab: BERT's vocab.txt or the dictionary made of it")
        self.vocabulary = frozenset(read_vocabulary(cfg.wordpiece_vocab))
        # special symbols in a text, such as "[SEP]", are not split
        self.whole = frozenset(s for s in self.vocabulary if len(s) > 2 and s[0] == "[" and s[-1] == "]")
        self.cased = cfg.wordpiece_cased
        self.pieces = functools.lru_cache(maxsize=1 << 17)(self.pieces)  # most words occur many times

    def encode(self, text: str) -> str:
        words = basic_tokens(text, self.cased, self.whole)
        return " ".join(piece for word in words for piece in ([word] if word in self.whole else self.pieces(word)))

    def decode(self, text: str) -> str:
        return join_pieces(text)

    def is_beginning_of_word(self, piece: str) -> bool:
        return not piece.startswith("##")

    def pieces(self, word: str) -> List[str]:
        """The pieces of a word, from the left the longest in the vocabulary; ``[UNK]`` if a part has none."""
        if len(word) > MAX_CHARACTERS:
            return [UNKNOWN]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.vocabulary), None)
            if end is None:
                return [UNKNOWN]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces
