"""BLEU and chrF by sacreBLEU, always with the signature that makes them comparable."""
from typing import List, NamedTuple

from sacrebleu.metrics import BLEU, CHRF


class Quality(NamedTuple):
    """Scores from 0 to 100, and their signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score(hypotheses: List[str], references: List[List[str]]) -> Quality:
    """Corpus scores of detokenised text.

    Args:
        hypotheses: one a sentence.
        references: one list a reference set, each as long as the hypotheses.

    Raises:
        ValueError: a reference set has another number of sentences.
    """
    for number, reference in enumerate(references, 1):
        if len(reference) != len(hypotheses):
            raise ValueError(f"{len(hypotheses)} hypotheses but {len(reference)} sentences in reference {number}")
    bleu, chrf = BLEU(), CHRF()
    scores = [metric.corpus_score(hypotheses, references).score for metric in (bleu, chrf)]
    return Quality(*scores, str(bleu.get_signature()), str(chrf.get_signature()))
