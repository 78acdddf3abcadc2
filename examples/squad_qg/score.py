"""ROUGE-L, BLEU-4 and METEOR of generated questions, computed by rouge-score, sacreBLEU and NLTK.

    python examples/squad_qg/score.py REFERENCES OUTPUT [OUTPUT ...] [--sources SENTENCES]

An OUTPUT is text, one question a line, or output of fairseq-generate. With --sources, the questions of the same
sentence are references of one another, as SQuAD's question generation is scored (Du et al. 2017). All text is taken as
tokenised.

METEOR is NLTK's with exact and stem matches. Without WordNet, which is a download, it has no synonyms and is not
comparable with published METEOR. ROUGE-L is F1 (COCO's evaluation weighs recall more). Compare scores of this script
only.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import List, NamedTuple

from sacrebleu.metrics import BLEU

from nar_plugins.data.bleu import without_unknown
from nar_plugins.data.generated import best_hypotheses
from nar_plugins.data.lines import read_lines


class NoSynonyms:
    """Stands in for WordNet in NLTK's METEOR: no word has a synonym."""

    def synsets(self, word: str) -> list:
        return []


class Scores(NamedTuple):
    """All from 0 to 100."""

    rouge_l: float
    bleu: float
    meteor: float


def score(hypotheses: List[str], references: List[List[str]]) -> Scores:
    """Corpus BLEU-4, and the means over sentences of the best ROUGE-L and METEOR of any reference.

    Args:
        references: one list per hypothesis, of at least one reference.
    """
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    most = max(map(len, references))
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    bleu = BLEU(tokenize="none").corpus_score(hypotheses, streams).score
    rouge = RougeScorer(["rougeL"], tokenizer=Whitespace())
    best = [max(rouge.score(r, h)["rougeL"].fmeasure for r in several) for h, several in zip(hypotheses, references)]
    meteors = [
        meteor_score([r.split() for r in several], h.split(), wordnet=NoSynonyms())
        for h, several in zip(hypotheses, references)
    ]
    return Scores(100 * sum(best) / len(best), bleu, 100 * sum(meteors) / len(meteors))


class Whitespace:
    """A tokeniser for rouge-score that splits at white space (its default drops every character but a-z and 0-9)."""

    def tokenize(self, text: str) -> List[str]:
        return text.split()


def read(path: Path) -> List[str]:
    try:
        return read_lines(path)
    except ValueError as error:
        sys.exit(f"score.py: {error}")


def together(references: List[str], sources: List[str]) -> List[List[str]]:
    """For every reference, all references of the same source."""
    of_source = defaultdict(list)
    for reference, source in zip(references, sources):
        of_source[source].append(reference)
    return [of_source[source] for source in sources]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path)
    parser.add_argument("outputs", type=Path, nargs="+")
    parser.add_argument("--sources", type=Path, help="the sentences that the questions are about")
    args = parser.parse_args(argv)
    try:
        import nltk  # noqa: F401
        import rouge_score  # noqa: F401
    except ImportError as error:
        sys.exit(f"score.py: {error.name} is not installed: pip install -e '.[qg]'")
    references, _ = without_unknown(read(args.references))  # <unk> never counts as right
    sources = read(args.sources) if args.sources else list(range(len(references)))
    if len(sources) != len(references):
        sys.exit(f"score.py: {len(references)} references but {len(sources)} sources")
    print("| system | ROUGE-L | BLEU-4 | METEOR, no synonyms |\n|---|---|---|---|")
    for path in args.outputs:
        try:
            hypotheses = best_hypotheses(read(path), str(path))
        except ValueError as error:
            sys.exit(f"score.py: {error}")
        if len(hypotheses) != len(references):
            sys.exit(f"score.py: {path} has {len(hypotheses)} questions, {args.references} {len(references)}")
        print(
            f"| {path.stem} | "
            + " | ".join(f"{s:.2f}" for s in score(hypotheses, together(references, sources)))
            + " |"
        )


if __name__ == "__main__":
    main()
