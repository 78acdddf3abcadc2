"""What the output of ``fairseq-generate`` says of a system beside its BLEU: lengths, repetitions, tokens a call."""

import logging
import re
from collections import Counter
from typing import Dict, List, NamedTuple, Sequence

from nar_plugins.data.bleu import lacks_blanks
from nar_plugins.data.generated import best_hypotheses, generated_by_number
from nar_plugins.measure.quality import repetition

logger = logging.getLogger(__name__)

HISTORY = re.compile(r"E-(\d+)_(\d+)\t(.*)", re.S)  # of --retain-iter-history: sentence, pass, its tokens
ACCEPTED = re.compile(r"blockwise: .* \(tokens:calls ([\d: ]*)\)")  # the last line of the log of blockwise


class Generation(NamedTuple):
    """The figures of one system."""

    name: str
    length_errors: Counter  # tokens of the hypothesis less those of the reference -> sentences; without T- lines: none
    repetition: float  # share of words that equal the one before, 0 to 1
    accepted: Counter  # tokens that a call after the first decided -> calls; none: not from left to right, or unknown
    repetition_by_pass: List[float]  # the same share after every pass, of the history; without one: none


def read_generation(name: str, lines: List[str]) -> Generation:
    """The figures of the output of ``fairseq-generate``.

    Raises:
        ValueError: the lines hold no hypothesis.
    """
    hypotheses = generated_by_number(lines, "H")
    if not hypotheses:
        raise ValueError(f"{name} holds no line H-: give what fairseq-generate printed")
    references = generated_by_number(lines, "T")
    if lacks_blanks([*hypotheses.values(), *references.values()]):
        logger.warning(
            f"{name} has hardly a blank, and its length errors and repetition take what stands between blanks for a "
            "word: give the output without --remove-bpe, whose sub-words have blanks"
        )
    errors = Counter(
        len(text.split()) - len(references[number].split())
        for number, text in hypotheses.items()
        if number in references
    )
    histories = read_histories(lines)
    accepted = accepted_lengths(histories) or logged_lengths(lines)
    repeated = repetition(best_hypotheses(lines), str)
    return Generation(name, errors, repeated, accepted, [] if grows(histories) else repetitions(histories))


def read_histories(lines: Sequence[str]) -> List[List[List[str]]]:
    """The tokens after every pass, without ``</s>``, of the best hypothesis of every sentence."""
    found: Dict[int, Dict[int, List[str]]] = {}
    for line in lines:
        match = HISTORY.fullmatch(line)
        if match:  # the hypotheses after the best one come later
            found.setdefault(int(match[1]), {}).setdefault(int(match[2]), match[3].split())
    return [[passes[number] for number in sorted(passes)] for passes in found.values()]


def grows(histories: List[List[List[str]]]) -> bool:
    """Whether the passes append: every one's tokens begin with those of the pass before, and some pass follows one."""
    pairs = [pair for passes in histories for pair in zip(passes, passes[1:])]
    return (
        bool(pairs)
        and all(after[: len(before)] == before for before, after in pairs)
        and any(len(after) > len(before) for before, after in pairs)
    )


def accepted_lengths(histories: List[List[List[str]]]) -> Counter:
    """Tokens that a call after the first decided -> calls, where the passes append; ``</s>``, which the last call of a
    sentence decides, is counted."""
    if not grows(histories):
        return Counter()
    counts: Counter = Counter()
    for passes in histories:
        sizes = [len(tokens) for tokens in passes]
        sizes[-1] += 1
        counts.update(after - before for before, after in zip(sizes, sizes[1:]))
    return counts


def logged_lengths(lines: Sequence[str]) -> Counter:
    """The same, of the last line of the log of ``--generator blockwise``."""
    for line in reversed(lines):
        match = ACCEPTED.search(line)
        if match:
            return Counter({int(size): int(calls) for size, calls in (p.split(":") for p in match[1].split())})
    return Counter()


def repetitions(histories: List[List[List[str]]]) -> List[float]:
    """The share of repeated tokens after every pass; a sentence that is finished counts with its last pass."""
    most = max(map(len, histories), default=0)
    shares = []
    for number in range(most):
        texts = [" ".join(passes[min(number, len(passes) - 1)]) for passes in histories if passes]
        shares.append(repetition(texts, str))
    return shares
