"""A page of plots, of what was logged, measured and generated: PNGs, and one HTML file that holds them all."""

import base64
from html import escape
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from nar_plugins.measure.curves import Run, plot_runs
from nar_plugins.measure.generations import Generation
from nar_plugins.measure.plots import (
    Point,
    group,
    histogram,
    quality_against_passes,
    quality_against_speed,
    repetition_plot,
    speed_panels,
)

PAGE = "report.html"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #faf9f6; --soft: #5c636b; --line: #dcdad3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --paper: #15181b; --soft: #a3aab1; --line: #353b41; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; color: var(--ink);
  background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.25rem; }
p, li { color: var(--soft); margin: 0 0 0.75rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } code { font-size: 0.9em; }
"""


class Section(NamedTuple):
    """A plot on the page."""

    title: str
    caption: str
    image: Path


class Material(NamedTuple):
    """What a report is made of; empty, or None, where it was not given."""

    runs: Sequence[Run]
    bench: Optional[Dict[str, Any]]  # of ``record.read_record``
    generations: Sequence[Generation]


def write_report(folder: Path, material: Material) -> List[str]:
    """Write the plots and the page into a folder; the plots that are left out, and why, one line each.

    Raises:
        ValueError: there is nothing to plot.
    """
    sections, missing = [], []
    for make in (curves, speed, passes, accepted, lengths, repetitions):
        made = make(folder, material)
        (missing if isinstance(made, str) else sections).append(made)
    if not sections:
        raise ValueError(f"there is nothing to plot. {'. '.join(missing)}")
    (folder / PAGE).write_text(page(sections, material.bench, missing), encoding="utf-8")
    return missing


# -- the plots: each a section, or the reason why it is left out -------------------------------------------------------


def curves(folder: Path, material: Material):
    if not material.runs:
        return "Training curves: no --log was given"
    plot_runs(material.runs, folder / "curves.png")
    return Section("Training", "Losses (base 2) and validation BLEU against updates.", folder / "curves.png")


def measured(bench: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The systems whose figures are complete: those with the batch sizes of all."""
    systems = bench["systems"]
    sizes = {size for system in systems for size in system["batch_sizes"]}
    return [
        system
        for system in systems
        if system["bleu"] is not None and system["passes"] is not None and system["batch_sizes"].keys() == sizes
    ]


def points_of(systems: List[Dict[str, Any]]) -> List[Point]:
    """Each system at its passes."""
    return [Point(one["name"], one["passes"], one["bleu"], group(one["name"])) for one in systems]


def speed(folder: Path, material: Material):
    if material.bench is None:
        return "BLEU against speed: no --bench was given"
    systems = measured(material.bench)
    sizes = sorted(int(size) for size in systems[0]["batch_sizes"]) if systems else []
    if not sizes:
        return "BLEU against speed: no system of --bench has both"
    speeds = [[median(system, size) for system in systems] for size in sizes]
    panels, baseline = speed_panels(points_of(systems), sizes, speeds), systems[0]["name"]
    quality_against_speed(panels, baseline, folder / "speed.png", with_frontier=True)
    caption = (
        f"Sentences per second, relative to {baseline}. No system is both faster and better than one on the dashed "
        "line."
    )
    return Section("BLEU against speed", caption, folder / "speed.png")


def median(system: Dict[str, Any], size: int) -> float:
    """Sentences per second."""
    return system["batch_sizes"][str(size)]["sentences_per_second"]["median"]


def passes(folder: Path, material: Material):
    points = points_of(measured(material.bench)) if material.bench is not None else []
    if not points:
        return f"BLEU against passes: {'no system of --bench has both' if material.bench else 'no --bench was given'}"
    quality_against_passes(points, folder / "passes.png")
    caption = "Decoder passes, the mean over the sentences."
    return Section("BLEU against decoder passes", caption, folder / "passes.png")


def accepted(folder: Path, material: Material):
    counts = [(one.name, one.accepted) for one in material.generations if one.accepted]
    if not counts:
        return (
            "Accepted lengths: no --generated has the log of --generator blockwise, or a history "
            "(--retain-iter-history) of several tokens a call"
        )
    histogram(counts, folder / "accepted.png", "tokens decided in a call, after the first", "calls")
    return Section(
        "Accepted lengths", "Tokens that a decoder call decided, first calls left out.", folder / "accepted.png"
    )


def lengths(folder: Path, material: Material):
    counts = [(one.name, one.length_errors) for one in material.generations if one.length_errors]
    if not counts:
        return "Length errors: no --generated has references (lines T-)"
    histogram(counts, folder / "lengths.png", "tokens of the output less those of the reference", "sentences")
    caption = "Counted as the file has them: words with --remove-bpe, sub-words without."
    return Section("Length errors", caption, folder / "lengths.png")


def repetitions(folder: Path, material: Material):
    if not material.generations:
        return "Repetition: no --generated was given"
    systems = [(one.name, one.repetition, one.repetition_by_pass) for one in material.generations]
    repetition_plot(systems, folder / "repetition.png")
    caption = "The share of words that equal the one before them; by pass, of the tokens of --retain-iter-history."
    return Section("Repetition", caption, folder / "repetition.png")


# -- the page ----------------------------------------------------------------------------------------------------------


def page(sections: Sequence[Section], bench: Optional[Dict[str, Any]], missing: Sequence[str]) -> str:
    """The HTML: no script, nothing that is loaded, every text escaped."""
    parts = [f"<h1>Report</h1>\n{'' if bench is None else about(bench)}"]
    for title, caption, image in sections:
        data = base64.b64encode(image.read_bytes()).decode("ascii")
        parts.append(
            f"<h2>{escape(title)}</h2>\n<p>{escape(caption)}</p>\n"
            f'<img alt="{escape(f"Plot: {title}. {caption}")}" src="data:image/png;base64,{data}">'
        )
    if missing:
        items = "".join(f"<li>{escape(reason)}.</li>" for reason in missing)
        parts.append(f"<h2>Left out</h2>\n<ul>{items}</ul>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def about(bench: Dict[str, Any]) -> str:
    """The table of ``nar-bench``, with its command, date and machine."""
    sizes = sorted({int(size) for system in bench["systems"] for size in system["batch_sizes"]})
    headings = ["system", "BLEU", "chrF", "passes", *(f"sentences/s, batch {size}" for size in sizes)]
    lines = [
        [
            system["name"],
            *(number(system.get(name)) for name in ("bleu", "chrf", "passes")),
            *(number(median(system, size) if str(size) in system["batch_sizes"] else None) for size in sizes),
        ]
        for system in bench["systems"]
    ]
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    machine = bench.get("machine") or {}
    said = [bench.get("date"), machine.get("device"), machine.get("cpu"), bench.get("bleu_signature")]
    facts = ", ".join(str(fact) for fact in said if fact)
    command = " ".join(map(str, bench.get("command") or []))
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n'
        f"<p>{escape(facts)}</p>\n<p><code>{escape(command)}</code></p>\n"
    )


def number(value: Optional[float]) -> str:
    """A figure of the table."""
    return "-" if value is None else f"{value:.1f}"
