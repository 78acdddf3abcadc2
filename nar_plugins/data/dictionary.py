"""Dictionaries with a real ``<mask>``: fairseq's, to which it is appended, and BERT's, which has its own symbols."""

import io
import os
from typing import List, Optional, Tuple

from fairseq.data import Dictionary

MASK = "<mask>"
WORDPIECE = ("wordpiece", " ##", "##")  # what --remove-bpe may say of BERT's pieces


class BertDictionary(Dictionary):
    """A dictionary file that starts with ``[PAD]``: the ids are its line numbers, nothing is prepended or appended.

    ``[PAD]`` is pad (0), ``[UNK]`` unk, ``[CLS]`` bos, ``[SEP]`` eos and ``[MASK]`` mask.

    Raises:
        ValueError: one of the five is not in the file.
    """

    def __init__(self):
        super().__init__()
        self.symbols, self.count, self.indices, self.nspecial = [], [], {}, 0

    @classmethod
    def load(cls, f, add_special_symbols=True):
        dictionary = cls()
        dictionary.add_from_file(f)
        names = {"pad": "[PAD]", "unk": "[UNK]", "bos": "[CLS]", "eos": "[SEP]"}
        absent = [s for s in [*names.values(), "[MASK]"] if s not in dictionary.indices]
        if absent:
            raise ValueError(
                f"{f} starts with [PAD] but has no {absent[0]}: a BERT dictionary has all of BERT's symbols"
            )
        for name, symbol in names.items():
            setattr(dictionary, f"{name}_index", dictionary.indices[symbol])
            setattr(dictionary, f"{name}_word", symbol)
        return dictionary

    def string(self, tensor, bpe_symbol=None, *args, **kwargs):
        """fairseq's; ``--remove-bpe wordpiece`` (or " ##") joins the pieces of a word."""
        if bpe_symbol not in WORDPIECE:
            return super().string(tensor, bpe_symbol, *args, **kwargs)
        return join_pieces(super().string(tensor, None, *args, **kwargs))


def join_pieces(text: str) -> str:
    """Words from WordPiece's pieces: "em ##bed ##ding ." becomes "embedding ."."""
    return text.replace(" ##", "")


def load_dictionary(filename: str) -> Dictionary:
    """The dictionary in a file, as fairseq's or, when it starts with ``[PAD]``, as BERT's.

    Raises:
        ValueError: there is none, or a line of it is broken; the first is named.
    """
    if not os.path.exists(filename):
        raise ValueError(f"no dictionary {filename}: the data folder must hold those that the text was binarised with")
    try:
        with open(filename, encoding="utf-8") as file:
            lines = file.readlines()  # as fairseq ends them
    except UnicodeDecodeError as error:
        raise ValueError(f"{filename} is not UTF-8 ({error.reason}): binarise the text again") from error
    first = lines[0] if lines else ""
    if first.strip() == "[PAD]":
        raise ValueError(
            f"{filename} has no counts: nar-convert bert-vocab {filename} --out dict.txt makes a dictionary of it"
        )
    kind = BertDictionary if first.split(" ")[0].strip() == "[PAD]" else Dictionary
    try:
        return kind.load(filename)
    except (ValueError, RuntimeError) as error:  # fairseq's quote the line at best
        said = broken(lines, kind())
        if said is None:  # a symbol of BERT's is absent
            raise
        raise ValueError(f"{filename}, {said}") from error


def broken(lines: List[str], dictionary: Dictionary) -> Optional[str]:
    """What is wrong with the first line that fairseq cannot read; None where it can read all.

    Args:
        dictionary: a new one, which reads the lines.
    """
    for number, line in enumerate(lines, 1):
        try:
            dictionary.add_from_file(io.StringIO(line))
        except RuntimeError:
            symbol = line.rstrip().rsplit(" ", 1)[0]
            return (
                f"line {number}: '{symbol}' is there already: take one out, or write #fairseq:overwrite after its count"
            )
        except ValueError:
            return (
                f"line {number}: '{line.strip()}' is not a symbol, a blank and a count: mend the line, or binarise anew"
            )
    return None


def add_mask(dictionary: Dictionary) -> int:
    """The index of the mask symbol, appended unless the dictionary has it.

    An appended one stands for no word of a text: ``<mask>`` there is unknown, as it is to fairseq-preprocess, which
        read the
    file. So it gets a place among the symbols, but no entry in ``indices``, by which text is encoded.
    """
    if isinstance(dictionary, BertDictionary):
        return dictionary.indices["[MASK]"]
    if MASK in dictionary.indices:  # the file's
        return dictionary.indices[MASK]
    if MASK not in dictionary.symbols:
        dictionary.symbols.append(MASK)
        dictionary.count.append(1)
    return dictionary.symbols.index(MASK)


def knows_mask(dictionary: Dictionary) -> bool:
    """Whether ``<mask>`` is a word of the dictionary's file: fairseq's own models have then learnt to say it."""
    return not isinstance(dictionary, BertDictionary) and MASK in dictionary.indices


def not_words(dictionary: Dictionary, *more: int) -> Tuple[int, ...]:
    """The symbols that a text may hold and a parallel model cannot read as words: padding and the mask; ascending.

    Args:
        more: further ones, such as the symbol of ``--mask-symbol``.
    """
    return tuple(sorted({dictionary.pad(), add_mask(dictionary), *more}))


def check_same_symbols(theirs, ours, name: str) -> None:
    """Raise unless two lists of symbols are equal but for ``<mask>`` at the end, naming the first that differs."""
    theirs, ours = ([*symbols[:-1]] if symbols[-1] == MASK else [*symbols] for symbols in (theirs, ours))
    if theirs == ours:
        return
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
    there, here = (symbols[at] if at < len(symbols) else "nothing" for symbols in (theirs, ours))
    raise ValueError(
        f"{name} is not the checkpoint's: symbol {at} is '{here}', the checkpoint has '{there}'; "
        "binarise the data with the checkpoint's dictionaries (fairseq-preprocess --srcdict, --tgtdict)"
    )
