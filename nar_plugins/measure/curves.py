"""Training curves from the logs of ``fairseq-train``; drawing them needs matplotlib (the extra ``plots``)."""

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from nar_plugins.measure.plots import shown

# The messages of a log, behind the time and the logger's name or, with --log-file, alone. --log-format simple, which is
# also the default where the log is no terminal:
UPDATES = re.compile(r"epoch \d+:\s+\d+ / \d+ (\w+=.*)")  # epoch 001:     20 / 90 loss=7.7, num_updates=20, ...
SUMMARY = re.compile(r"epoch \d+ \| (?:valid on '([^']+)' subset \| )?(loss .*)")  # ... | loss 7.7 | ...
OBJECT = re.compile(r"\{\"epoch\": .*\}")  # --log-format json

Curve = Dict[int, float]  # update -> value


class Run(NamedTuple):
    """The curves of one training. Losses are fairseq's, in base 2."""

    name: str
    training_loss: Curve  # at every --log-interval or, in a terminal's log, the mean of every epoch
    valid_loss: Curve  # of the first subset of --valid-subset
    valid_bleu: Curve  # of the same, with --eval-bleu; else empty


TITLES = {"training_loss": "training loss", "valid_loss": "validation loss", "valid_bleu": "validation BLEU"}


def records(lines: Sequence[str]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """A log's records: "" for updates, "train" for an epoch or a validation subset's name, and the figures."""
    for line in lines:
        if match := OBJECT.search(line):
            try:
                figures = json.loads(match[0])
            except ValueError:  # a line that is cut off
                continue
            tag = next((name[: -len("_num_updates")] for name in figures if name.endswith("_num_updates")), "")
            yield tag, {name.removeprefix(f"{tag}_") if tag else name: value for name, value in figures.items()}
        elif match := UPDATES.search(line):
            figures = match[1].split(", ")[:-1]  # the last one is a time or, where the line is cut off, a part
            yield "", dict(figure.split("=", 1) for figure in figures if "=" in figure)
        elif match := SUMMARY.search(line):
            yield match[1] or "train", dict(part.rsplit(" ", 1) for part in match[2].split(" | ") if " " in part)


def read_run(name: str, lines: Sequence[str]) -> Run:
    """The curves of a log. Where a run was continued, the later figures of an update count.

    Raises:
        ValueError: the log holds no figure, or one that is no number.
    """
    curves: Dict[Tuple[str, str], Curve] = {}
    for tag, figures in records(lines):
        for field in ("loss", "bleu"):
            if field in figures and "num_updates" in figures:
                updates = number(name, figures, "num_updates")  # fairseq writes 1e+06
                if not updates.is_integer():
                    raise no_number(name, figures, "num_updates")
                curves.setdefault((tag, field), {})[int(updates)] = number(name, figures, field)
    subset = next((tag for tag, _ in curves if tag not in ("", "train")), None)
    training = curves.get(("", "loss")) or curves.get(("train", "loss"), {})
    run = Run(name, training, curves.get((subset, "loss"), {}), curves.get((subset, "bleu"), {}))
    if not any(run[1:]):
        raise ValueError(f"{name} holds no loss and no BLEU: give the log of a fairseq-train run")
    return run


def number(name: str, figures: Dict[str, Any], field: str) -> float:
    """A figure of a log's record; raises where it is no number."""
    try:
        return float(figures[field])
    except (TypeError, ValueError) as error:
        raise no_number(name, figures, field) from error


def no_number(name: str, figures: Dict[str, Any], field: str) -> ValueError:
    """The error for a figure of a log that is none."""
    return ValueError(f"{name}: a line has {field} {figures[field]!r}, which is no number: take it out of the log")


def plot_runs(runs: Sequence[Run], path: Path):
    """Draw the curves against updates, one panel a quantity that a run has, one line a run; returns the figure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    fields: List[str] = [field for field in TITLES if any(getattr(run, field) for run in runs)]
    figure = Figure(figsize=(5 * len(fields), 4), layout="constrained")
    colours = colormaps["tab20"].colors
    for axes, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields):
        for number, run in enumerate(runs):
            curve = sorted(getattr(run, field).items())
            if curve:
                updates, values = zip(*curve)
                marker = "o" if len(curve) == 1 else None  # a line through one point is invisible
                axes.plot(updates, values, color=colours[number % len(colours)], marker=marker, label=shown(run.name))
        axes.set_xlabel("updates")
        axes.set_title(TITLES[field])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure
