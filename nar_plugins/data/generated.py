"""The output of ``fairseq-generate``: lines such as ``D-17<tab>-0.3<tab>text``, in any order, among its logs."""

from typing import Dict, List

FIELDS_BEFORE_TEXT = {"S": 1, "T": 1, "H": 2, "D": 2}  # the sentence's number; for hypotheses also the score


def cut_off(name: str, number: int, line: str) -> ValueError:
    """The error for a line that ends before its text."""
    return ValueError(
        f"{name}, line {number}: '{line}' is cut off, as a run that is stopped leaves its last line: decode these "
        "sentences again"
    )


def generated_by_number(lines: List[str], kind: str, name: str = "the output") -> Dict[int, str]:
    """Number of the sentence -> the text of its first line of a kind, in the order of the lines.

    Args:
        kind: S, T, H or D, the first letter of the lines.
        name: the file, for the message.

    Raises:
        ValueError: a line ends before its text: that is half a line, and no empty text.
    """
    texts, before = {}, FIELDS_BEFORE_TEXT[kind]
    cut = []  # numbers of lines; a line without a tab may belong to plain text
    for number, line in enumerate(lines, 1):
        label, *fields = line.split("\t", before)  # the text itself may contain tabs
        if label.startswith(f"{kind}-") and label[2:].isdigit():
            if len(fields) == before:
                texts.setdefault(int(label[2:]), fields[before - 1])
            else:
                cut.append(number)
    if cut and (texts or any("\t" in lines[number - 1] for number in cut)):
        raise cut_off(name, cut[0], lines[cut[0] - 1])
    return texts


def generated(lines: List[str], kind: str, name: str = "the output") -> List[str]:
    """The texts of ``generated_by_number``, in the order of the sentences' numbers."""
    texts = generated_by_number(lines, kind, name)
    return [texts[i] for i in sorted(texts)]


def best_hypotheses(lines: List[str], name: str = "the output") -> List[str]:
    """The best hypothesis of every sentence: its D- line, or H- where there is no D-; plain text as it is."""
    return generated(lines, "D", name) or generated(lines, "H", name) or lines


def missing_numbers(lines: List[str]) -> List[int]:
    """The numbers of sentences below the largest that have no hypothesis; none for plain text."""
    found = generated_by_number(lines, "D") or generated_by_number(lines, "H")
    return sorted(set(range(max(found, default=-1) + 1)) - found.keys())
