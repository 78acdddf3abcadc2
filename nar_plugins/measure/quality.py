"""BLEU and chrF by sacreBLEU, with the signatures that make them comparable."""

import logging
from typing import List, NamedTuple, Optional

from sacrebleu.metrics import BLEU, CHRF

from nar_plugins.data.bleu import bleu_metric, warn_of_no_blanks, without_unknown

logger = logging.getLogger(__name__)


class Quality(NamedTuple):
    """Corpus scores from 0 to 100, and their sacreBLEU signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def check_references(references: List[List[str]], sentences: int) -> None:
    """Raise unless every reference set has one line per sentence, and there is a sentence.

    Args:
        references: one list per reference set.
    """
    for number, reference in enumerate(references, 1):
        if len(reference) != sentences:
            raise ValueError(f"{sentences} hypotheses but {len(reference)} sentences in reference {number}")
    if not sentences:
        raise ValueError("there is no sentence to score")


def warn_of_references(references: List[List[str]], metric: BLEU) -> None:
    """Warn of references that make scores unreliable: sub-words, unknown words, or no blanks between words."""
    texts = [text for reference in references for text in reference]
    unknown = without_unknown(texts)[1]
    if unknown:
        logger.warning(
            f"the references hold {unknown} unknown words (<unk>), which count as not translated: the text itself, "
            "given as the reference, scores exactly"
        )
    if 2 * sum("\u2581" in text or "@@ " in text for text in texts) > len(texts):
        logger.warning("the references are sub-words, and BLEU of pieces is not BLEU of words: --remove-bpe joins them")
    warn_of_no_blanks(metric, texts)


def score(hypotheses: List[str], references: List[List[str]], metric: Optional[BLEU] = None) -> Quality:
    """Corpus scores of detokenised text; no hypothesis matches an unknown word in a reference.

    Args:
        hypotheses: one per sentence.
        references: one list per reference set, each as long as the hypotheses.
        metric: BLEU, from ``bleu_metric``; None: with tokeniser 13a. chrF compares characters and has no tokeniser.

    Raises:
        ValueError: a reference set has another number of sentences, or there is no sentence.
    """
    check_references(references, len(hypotheses))
    references = [without_unknown(reference)[0] for reference in references]
    bleu, chrf = metric or bleu_metric("13a"), CHRF()
    scores = [scorer.corpus_score(hypotheses, references).score for scorer in (bleu, chrf)]
    return Quality(*scores, str(bleu.get_signature()), str(chrf.get_signature()))
