"""A page of sentences with the output of every system, side by side."""

import re
from typing import List, NamedTuple, Sequence, Tuple

from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.measure.table import markdown


class Example(NamedTuple):
    """One sentence of the comparison."""

    number: int  # in the data, from 0, as in the lines of fairseq-generate
    source: str
    references: List[str]
    outputs: List[Tuple[str, str]]  # (system, its text)


def evenly_spaced(count: int, sentences: int) -> List[int]:
    """Indices of at most ``count`` sentences, evenly spaced over a split, not picked by hand."""
    count = min(count, sentences)
    return [number * sentences // count for number in range(count)]


def escaped(text: str) -> str:
    """A text that Markdown shows as it is in a cell of a table: ``<unk>`` is no tag and ``|`` ends no cell."""
    text = text.replace(UNKNOWN_IN_REFERENCE, "<unk>").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_~|\[\]$])", r"\\\1", " ".join(text.split()))


def page(examples: Sequence[Example]) -> str:
    """A Markdown page: one table a sentence, with a line for the source, each reference and each system."""
    sections = ["# Examples\n"]
    for example in examples:
        names = ["reference"] if len(example.references) == 1 else None
        names = names or [f"reference {number}" for number in range(1, len(example.references) + 1)]
        lines = [("source", example.source), *zip(names, example.references), *example.outputs]
        table = markdown(["", "text"], [[escaped(name), escaped(text)] for name, text in lines])
        sections.append(f"## Sentence {example.number}\n\n{table}\n")
    return "\n".join(sections)
