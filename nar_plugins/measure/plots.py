"""Plots of measurements; matplotlib is the extra ``plots``."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence


class Row(NamedTuple):
    """A system: its name, passes of the decoder a sentence, quality, and the group whose points a line joins."""

    name: str
    passes: float
    quality: float
    group: str


def check_plot(path: Path) -> None:
    """Raise, naming what is wrong, when no plot could be written to ``path``."""
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'nar-plugins[plots]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"--plot {path}: the name must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: no folder '{path.parent}'")


def group(name: str) -> str:
    """A system's name without a number at its end: "adaptive 0.9" is one of "adaptive", "R = 4" one of "R"."""
    return re.sub(r"[ =]+-?\d+(\.\d+)?$", "", name)


def groups(rows: Sequence[Row]) -> Dict[str, List[Row]]:
    """Group -> its rows from the fewest passes to the most, the groups in the order of the table."""
    found: Dict[str, List[Row]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return {shared: sorted(members, key=lambda row: row.passes) for shared, members in found.items()}


def quality_against_passes(rows: Sequence[Row], path: Path, quality: str = "BLEU"):
    """Draw every row as a point, and a line through those of a group; returns the figure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and looks for a display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # two models by every policy are more than ten groups
    for shared, members in groups(rows).items():
        alone = len(members) == 1
        label = members[0].name if alone else shared
        axes.plot([row.passes for row in members], [row.quality for row in members], marker="o", label=label)
        for row in () if alone else members:  # a lone point is named in the legend
            text = row.name.removeprefix(shared).strip(" ,=")
            axes.annotate(text, (row.passes, row.quality), xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set_xlabel("decoder passes a sentence")
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure
