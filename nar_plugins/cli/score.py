"""nar-score: BLEU, chrF and the faults of text or of fairseq-generate's output, with sacreBLEU's signatures.

Examples:

    nar-score output.txt reference.txt
    fairseq-generate DATA --path MODEL ... | nar-score
    fairseq-generate DATA --path MODEL ... | nar-score - reference.zh --target-lang zh
    nar-score reference.txt -i ar.out cmlm.out --paired-bs

A line ends at \\n only, and a byte order mark is removed. No hypothesis matches <unk> in a reference.

BLEU is sacreBLEU's, of detokenised text. "BLEU tokenised" takes what stands between blanks for words (--tokenize none),
or what Moses does (--moses); "BLEU compounds split" is the same after a-b became a ##AT##-##AT## b on both sides, as in
papers on WMT'14 English-German. The repetition rate is the share of tokens (BLEU's) that equal the token before them.
Unusable input ends with one line and status 2.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from nar_plugins.cli.command import add_tokenize, new_parser, one_line_errors, only_results
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.data.generated import best_hypotheses, generated, missing_numbers
from nar_plugins.data.lines import STDIN, read_lines
from nar_plugins.data.shards import blocks_of, check_complete
from nar_plugins.data.whole_file import check_output, write_whole
from nar_plugins.measure.quality import (
    Comparison,
    Report,
    moses_tokenizer,
    paired_bootstrap,
    report,
    warn_of_references,
)
from nar_plugins.measure.table import markdown

logger = logging.getLogger(__name__)


class Texts(NamedTuple):
    """What is scored: every system's hypotheses, and the reference sets, each with the name of its file."""

    hypotheses: Dict[str, List[str]]
    references: Dict[str, List[str]]


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-score", __doc__)
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="the hypotheses (default: standard input, also -), then one or more reference texts (default: the "
        "T- lines of fairseq-generate's output). Hypotheses are text with one sentence per line, or the output of "
        "fairseq-generate, of which the best D- or H- line of each sentence is scored. With -i all are references",
    )
    parser.add_argument(
        "-i",
        "--input",
        nargs="+",
        metavar="HYP",
        help="the hypotheses of one or more systems; the texts before it are references, as in sacreBLEU",
    )
    add_tokenize(parser, "that of --target-lang")
    parser.add_argument(
        "--target-lang",
        metavar="CODE",
        help="language of the text, which sets the tokeniser: zh for zh, ja-mecab for ja, ko-mecab for ko, char for "
        "th, km, lo and my, else 13a, which separates words at blanks",
    )
    parser.add_argument(
        "--moses",
        metavar="CODE",
        help="language for Moses' tokeniser, by which both sides are tokenised for tokenised and compound-split BLEU "
        "(default: the text as it is; needs sacremoses)",
    )
    parser.add_argument(
        "--paired-bs",
        action="store_true",
        help="compare every system of -i with the first by sacreBLEU's paired bootstrap resampling",
    )
    parser.add_argument(
        "--paired-bs-n", type=int, default=1000, metavar="N", help="resamples of --paired-bs (default: 1000)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-score", status=2), only_results():
        evaluate(args)


def evaluate(args) -> None:
    """Score what the command line names, print the figures, and write those of ``--json``.

    Raises:
        ValueError: a text or an option cannot be used.
    """
    systems = args.input or args.texts[:1] or [STDIN]
    reference_files = args.texts if args.input else args.texts[1:]
    if args.paired_bs and (len(systems) < 2 or args.paired_bs_n < 1):
        raise ValueError("--paired-bs compares several systems: -i HYP HYP ..., with --paired-bs-n of 1 or more")
    if args.json:
        check_output(args.json, "--json")
    metric = bleu_metric(args.tokenize, args.target_lang)
    moses = moses_tokenizer(args.moses) if args.moses else None
    texts = read_texts(systems, reference_files)
    references = [*texts.references.values()]
    reports = [report(name, lines, references, metric, moses) for name, lines in texts.hypotheses.items()]
    signatures, tests = None, None
    if args.paired_bs:
        signatures, tests = paired_bootstrap([*texts.hypotheses.items()], references, metric, args.paired_bs_n)
    warn_of_references(references, metric)
    notes = {"bleu_tokenised": f", Moses ({args.moses})" if args.moses else ""}
    notes["bleu_compounds"] = f"{notes['bleu_tokenised']}, compounds split"
    print(lines_of(reports[0], notes) if len(reports) == 1 else table(reports, notes, tests, signatures))
    if args.json:
        figures = to_json(reports, notes, tests, signatures)
        write_whole(args.json, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


# -- reading -----------------------------------------------------------------------------------------------------------


def read_texts(systems: List[str], reference_files: List[str]) -> Texts:
    """The texts, with as many sentences each.

    Raises:
        ValueError: a file is missing or empty, is named twice, or has another number of sentences than the others.
    """
    if systems.count(STDIN) + reference_files.count(STDIN) > 1:
        raise ValueError("- is standard input, which can be read once")
    if STDIN in systems and sys.stdin.isatty():
        raise ValueError("no hypotheses: give a file, or pipe them in")
    for name in systems:
        if systems.count(name) > 1:
            raise ValueError(f"-i has {name} twice")
    outputs = {name: read_lines(name) for name in systems}
    hypotheses = {title(name): best_hypotheses(lines, title(name)) for name, lines in outputs.items()}
    for name, lines in outputs.items():
        blocks = blocks_of(title(name), lines)
        check_complete(blocks, dict.fromkeys(blocks, title(name)))
    for name, lines in hypotheses.items():
        if not lines:
            raise ValueError(f"{name} is empty: there is no sentence to score")
    references = {title(name): read_lines(name) for name in dict.fromkeys(reference_files)} or targets(outputs)
    first, wanted = next((name, len(lines)) for name, lines in hypotheses.items())
    for name, lines in references.items():
        if not lines:
            raise ValueError(f"no references: {name} is empty, {first} has {wanted} sentences")
    for name, lines in [*hypotheses.items(), *references.items()]:
        if len(lines) != wanted:
            raise ValueError(f"{first} has {wanted} sentences, {name} has {len(lines)}{gaps(outputs)}")
    if not reference_files and gaps(outputs):  # T- lines are of as many sentences, however many are missing
        logger.warning(f"a part of the data is scored{gaps(outputs)}: a shard, or a run that was stopped")
    return Texts(hypotheses, references)


def title(name: str) -> str:
    """The name of a text in messages."""
    return "standard input" if name == STDIN else name


def targets(outputs: Dict[str, List[str]]) -> Dict[str, List[str]]:
    """The T- lines of fairseq-generate's outputs, which must be the same in all systems.

    Raises:
        ValueError: an output has none, or others.
    """
    found = {name: generated(lines, "T", title(name)) for name, lines in outputs.items()}
    first = next(iter(found))
    for name, lines in found.items():
        if not lines:
            raise ValueError(f"no references: {title(name)} has no T- lines of fairseq-generate: give a file of them")
        if lines != found[first]:
            raise ValueError(f"the T- lines of {title(first)} and {title(name)} differ: give the references as a file")
    return {f"the T- lines of {title(first)}": found[first]}


def gaps(outputs: Dict[str, List[str]]) -> str:
    """Which sentences an output of fairseq-generate lacks, as the end of a message; nothing where it lacks none."""
    for name, lines in outputs.items():
        missing = missing_numbers(lines)
        if missing:
            return f"; {title(name)} lacks {', '.join(map(str, missing[:5]))}{', ...' * (len(missing) > 5)}"
    return ""


# -- printing ----------------------------------------------------------------------------------------------------------

SCORES = {"bleu": "BLEU", "bleu_tokenised": "BLEU tokenised", "bleu_compounds": "BLEU compounds split", "chrf": "chrF"}


def lines_of(report: Report, notes: Dict[str, str]) -> str:
    """The figures of one system, one a line."""
    lines = []
    for field, name in SCORES.items():
        value, signature = getattr(report, field)
        lines.append(f"{name} {value:.2f}  {signature}{notes.get(field, '')}")
    return "\n".join(
        [
            *lines,
            f"length ratio {report.length_ratio:.3f}",
            f"repetition {report.repetition:.2%}  references {report.reference_repetition:.2%}",
            f"empty outputs {report.empty} of {report.sentences}",
            f"outputs with unknown words {report.with_unknown} of {report.sentences}",
        ]
    )


def table(
    reports: List[Report],
    notes: Dict[str, str],
    tests: Optional[List[Dict[str, Comparison]]],
    signatures: Optional[Dict[str, str]],
) -> str:
    """The figures of several systems as a Markdown table, and the signatures.

    Args:
        notes: what the signatures do not contain.
        tests, signatures: of the paired bootstrap, one test per system.
    """
    others = ["length ratio", "repetition", "empty", "with unknown words"]
    compared = [f"{name}: {what}" for name in signatures or () for what in ("mean ± 95 %", "p")]
    lines = []
    for number, system in enumerate(reports):
        line = [system.system, *(f"{getattr(system, field).score:.2f}" for field in SCORES)]
        line += [f"{system.length_ratio:.3f}", f"{system.repetition:.2%}", str(system.empty), str(system.with_unknown)]
        for test in tests[number].values() if tests else ():
            line += [f"{test.mean:.2f} ± {test.interval:.2f}", "-" if test.p_value is None else f"{test.p_value:.4f}"]
        lines.append(line)
    signed = [f"{name}: {getattr(reports[0], f).signature}{notes.get(f, '')}" for f, name in SCORES.items()]
    signed += [
        f"{name}, paired bootstrap against {reports[0].system}: {sign}" for name, sign in (signatures or {}).items()
    ]
    return "\n".join([markdown(["system", *SCORES.values(), *others, *compared], lines), "", *signed])


def to_json(
    reports: List[Report],
    notes: Dict[str, str],
    tests: Optional[List[Dict[str, Comparison]]],
    signatures: Optional[Dict[str, str]],
) -> Dict:
    """The figures for ``--json``: {"systems": [one object each]}, and "paired_bs" with the signatures of the test."""
    systems = []
    for number, system in enumerate(reports):
        figures = system._asdict()
        for field in SCORES:
            value, signature = figures[field]
            figures[field] = {"score": value, "signature": f"{signature}{notes.get(field, '')}"}
        if tests:
            figures["paired_bs"] = {name: test._asdict() for name, test in tests[number].items()}
        systems.append(figures)
    return {"systems": systems, **({"paired_bs": signatures} if signatures else {})}


if __name__ == "__main__":
    main()
