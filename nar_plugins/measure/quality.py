"""BLEU and chrF by sacreBLEU, with the signatures that make them comparable, and counts of faults."""

import logging
import re
from importlib.util import find_spec
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nar_plugins.data.bleu import UNKNOWN, bleu_metric, warn_of_no_blanks, without_unknown

logger = logging.getLogger(__name__)


class Quality(NamedTuple):
    """Corpus scores from 0 to 100, and their sacreBLEU signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


class Score(NamedTuple):
    """A corpus score from 0 to 100, and its sacreBLEU signature."""

    score: float
    signature: str


class Report(NamedTuple):
    """What ``nar-score`` computes of one system; rates are shares from 0 to 1."""

    system: str
    sentences: int
    bleu: Score  # by the tokeniser of the language, of detokenised text
    bleu_tokenised: Score  # of the words between blanks
    bleu_compounds: Score  # the same, of compounds in their parts
    chrf: Score
    length_ratio: float  # BLEU's tokens of the hypotheses, divided by those of the closest references
    repetition: float  # of the hypotheses
    reference_repetition: float  # of all references
    empty: int  # hypotheses without a word
    with_unknown: int  # hypotheses with an unknown word


class Comparison(NamedTuple):
    """One system's paired bootstrap test for one metric."""

    score: float
    mean: float  # of the resamples
    interval: float  # half of the 95 % interval around the mean
    p_value: Optional[float]  # of the difference to the first system; 1 for the same text; None: this is the first


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


def moses_tokenizer(language: str) -> Callable[[str], str]:
    """Moses' tokeniser (sacremoses): text to tokens with blanks between them, with Moses' escapes.

    It warns of a language for which Moses has no rules: it takes those of English.

    Raises:
        ValueError: sacremoses is not installed.
    """
    if find_spec("sacremoses") is None:
        raise ValueError(f"--moses {language} needs sacremoses: pip install 'nar-plugins[recipes]'")
    from sacremoses import MosesTokenizer
    from sacremoses.corpus import NonbreakingPrefixes

    known = {*NonbreakingPrefixes().available_langs.values(), "ja", "ko"}  # of the last two it has the letters only
    if language not in known:
        names = ", ".join(sorted(known))
        logger.warning(f"--moses {language}: Moses has no rules for it, and English's are used (it has {names})")
    tokenizer = MosesTokenizer(language)
    return lambda text: tokenizer.tokenize(text, return_str=True)


def split_compounds(text: str) -> str:
    """The text with a hyphen inside a word as a word of its own: ``a-b`` becomes ``a ##AT##-##AT## b``.

    The scripts of Vaswani et al. 2017 and Ott et al. 2018 split compounds so before BLEU of WMT'14 English-German. They
    see bytes, and so does this: it matters beside a single letter outside ASCII.
    """
    return re.sub(rb"(\S)-(\S)", rb"\1 ##AT##-##AT## \2", text.encode("utf-8")).decode("utf-8")


def repetition(texts: Sequence[str], tokenize: Callable[[str], str]) -> float:
    """The share of tokens that equal the token before them (Ghazvininejad et al. 2019, section 5)."""
    tokens = [tokenize(text).split() for text in texts]
    repeated = sum(one == other for line in tokens for one, other in zip(line, line[1:]))
    return repeated / max(1, sum(map(len, tokens)))


def report(
    system: str,
    hypotheses: List[str],
    references: List[List[str]],
    metric: BLEU,
    moses: Optional[Callable[[str], str]] = None,
) -> Report:
    """Everything about one system; no hypothesis matches an unknown word in a reference.

    Args:
        system: its name.
        hypotheses: one per sentence.
        references: one list per reference set, each as long as the hypotheses.
        metric: BLEU, from ``bleu_metric``.
        moses: tokenises both sides for ``bleu_tokenised`` and ``bleu_compounds``; None: the text has blanks between its
            tokens.

    Raises:
        ValueError: a reference set has another number of sentences, or there is no sentence.
    """
    check_references(references, len(hypotheses))
    empty = sum(not text.split() for text in hypotheses)
    with_unknown = sum(UNKNOWN.search(text) is not None for text in hypotheses)
    references = [without_unknown(reference)[0] for reference in references]
    bleu = metric.corpus_score(hypotheses, references)
    tokens = [[moses(text) for text in texts] if moses else texts for texts in (hypotheses, *references)]
    parts = [[split_compounds(text) for text in texts] for texts in tokens]
    return Report(
        system,
        len(hypotheses),
        Score(bleu.score, str(metric.get_signature())),
        corpus_score(bleu_metric("none"), *tokens),
        corpus_score(bleu_metric("none"), *parts),
        corpus_score(CHRF(), hypotheses, *references),
        bleu.sys_len / max(1, bleu.ref_len),
        repetition(hypotheses, metric.tokenizer),
        repetition([text for texts in references for text in texts], metric.tokenizer),
        empty,
        with_unknown,
    )


def corpus_score(metric, hypotheses: List[str], *references: List[str]) -> Score:
    """The score of one of sacreBLEU's metrics, with its signature."""
    value = metric.corpus_score(hypotheses, references).score
    return Score(value, str(metric.get_signature()))


def paired_bootstrap(
    systems: Sequence[Tuple[str, List[str]]], references: List[List[str]], metric: BLEU, samples: int
) -> Tuple[Dict[str, str], List[Dict[str, Comparison]]]:
    """sacreBLEU's paired bootstrap resampling (Koehn 2004) of every system against the first.

    Args:
        systems: (name, hypotheses) of each.
        references: one list per reference set.
        metric: BLEU, from ``bleu_metric``; chrF is tested beside it.
        samples: number of resamples. The seed is sacreBLEU's, SACREBLEU_SEED of the environment.

    Returns:
        metric -> its signature, and for every system: metric -> its test. The metrics are "BLEU" and "chrF".
    """
    references = [without_unknown(reference)[0] for reference in references]
    metrics = {"BLEU": metric, "chrF": CHRF()}
    test = PairedTest(list(systems), metrics, references, test_type="bs", n_samples=samples)
    signatures, found = test()
    names = dict(zip(metrics, test.metrics))  # sacreBLEU's names: chrF's has its parameters
    tests = []
    for i in range(len(systems)):
        # sacreBLEU finds no resample with more than no difference, and gives the same text the smallest p-value
        same = i > 0 and systems[i][1] == systems[0][1]
        results = {name: found[own][i] for name, own in names.items()}
        tests.append(
            {
                name: Comparison(result.score, float(result.mean), float(result.ci), 1.0 if same else result.p_value)
                for name, result in results.items()
            }
        )
    return {name: str(signatures[own]) for name, own in names.items()}, tests
