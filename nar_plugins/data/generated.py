"""The output of ``fairseq-generate``: lines such as ``D-17<tab>-0.3<tab>text``, in any order, among its logs."""

from typing import Dict, List

FIELDS_BEFORE_TEXT = {"S": 1, "T": 1, "H": 2, "D": 2}  # the sentence's number; for hypotheses also the score


def generated_by_number(lines: List[str], kind: str) -> Dict[int, str]:
    """Number of the sentence -> the text of its first line of a kind, in the order of the lines.

    Args:
        kind: S, T, H or D, the first letter of the lines.
    """
    texts, before = {}, FIELDS_BEFORE_TEXT[kind]
    for line in lines:
        name, *fields = line.split("\t", before)  # the text itself may contain tabs
        if name.startswith(f"{kind}-") and name[2:].isdigit():
            texts.setdefault(int(name[2:]), fields[before - 1] if len(fields) == before else "")
    return texts


def generated(lines: List[str], kind: str) -> List[str]:
    """The texts of ``generated_by_number``, in the order of the sentences' numbers."""
    texts = generated_by_number(lines, kind)
    return [texts[i] for i in sorted(texts)]


def best_hypotheses(lines: List[str]) -> List[str]:
    """The best hypothesis of every sentence: its D- line, or H- where there is no D-; plain text as it is."""
    return generated(lines, "D") or generated(lines, "H") or lines


def missing_numbers(lines: List[str]) -> List[int]:
    """The numbers of sentences below the largest that have no hypothesis; none for plain text."""
    found = generated_by_number(lines, "D") or generated_by_number(lines, "H")
    return sorted(set(range(max(found, default=-1) + 1)) - found.keys())
