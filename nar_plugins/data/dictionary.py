"""Dictionaries with a ``<mask>`` symbol: appended to fairseq's dictionary, ``[MASK]`` in BERT's."""

import io
import os
from typing import List, Optional, Tuple

from fairseq.data import Dictionary

MASK = "<mask>"
WORDPIECE = ("wordpiece", " ##", "##")  # the values of --remove-bpe that join WordPiece sub-words


class BertDictionary(Dictionary):
    """BERT's dictionary, a file that starts with ``[PAD]``: an id is its line number, and no symbol is added.

    ``[PAD]`` is pad (0), ``[UNK]`` unk, ``[CLS]`` bos, ``[SEP]`` eos and ``[MASK]`` mask.

    Raises:
        ValueError: one of these five symbols is not in the file.
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
    """Read a dictionary file: BERT's if it starts with ``[PAD]``, else fairseq's.

    Raises:
        ValueError: the file is missing, or a line is malformed; the first such line is named.
    """
    if not os.path.exists(filename):
        raise ValueError(f"no dictionary {filename}: the data folder must hold those that the text was binarised with")
    try:
        with open(filename, encoding="utf-8") as file:
            lines = file.readlines()  # ends lines where fairseq does
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
    except (ValueError, RuntimeError) as error:  # fairseq's errors do not name the line
        problem = malformed_line(lines, kind())
        if problem is None:  # a symbol of BERT's is absent
            raise
        raise ValueError(f"{filename}, {problem}") from error


def malformed_line(lines: List[str], dictionary: Dictionary) -> Optional[str]:
    """The number and the problem of the first line that fairseq cannot read; None if it reads them all.

    Args:
        dictionary: an empty one, which reads the lines.
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
    """The index of the mask symbol, which is appended unless the dictionary file has it.

    Text that contains ``<mask>`` is still encoded as ``<unk>``, as fairseq-preprocess does, which read the file without
    it. So an appended ``<mask>`` is added to ``symbols``, but not to ``indices``, which encodes text.
    """
    if isinstance(dictionary, BertDictionary):
        return dictionary.indices["[MASK]"]
    if MASK in dictionary.indices:  # it is in the file
        return dictionary.indices[MASK]
    if MASK not in dictionary.symbols:
        dictionary.symbols.append(MASK)
        dictionary.count.append(1)
    return dictionary.symbols.index(MASK)


def knows_mask(dictionary: Dictionary) -> bool:
    """Whether the dictionary file itself has ``<mask>``: fairseq's own models have then learnt to output it."""
    return not isinstance(dictionary, BertDictionary) and MASK in dictionary.indices


def unreadable_symbols(dictionary: Dictionary, *more: int) -> Tuple[int, ...]:
    """The symbols that a parallel model cannot read as words of a text, ascending: padding and the mask.

    Args:
        more: further such symbols, for example that of ``--mask-symbol``.
    """
    return tuple(sorted({dictionary.pad(), add_mask(dictionary), *more}))


def check_same_symbols(theirs, ours, name: str) -> None:
    """Raise unless two lists of symbols are equal, apart from a final ``<mask>``; the first difference is named."""
    theirs, ours = ([*symbols[:-1]] if symbols[-1] == MASK else [*symbols] for symbols in (theirs, ours))
    if theirs == ours:
        return
    index = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
    their_symbol, our_symbol = (symbols[index] if index < len(symbols) else "nothing" for symbols in (theirs, ours))
    raise ValueError(
        f"{name} is not the checkpoint's: symbol {index} is '{our_symbol}', the checkpoint has '{their_symbol}'; "
        "binarise the data with the checkpoint's dictionaries (fairseq-preprocess --srcdict, --tgtdict)"
    )
