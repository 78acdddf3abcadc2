"""Plots of quality against decoder passes; they need matplotlib (the extra ``plots``)."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence


class Point(NamedTuple):
    """The measurements of one system."""

    name: str
    passes: float  # decoder passes per sentence
    quality: float
    group: str  # a line joins the points of a group


def check_plot(path: Path) -> None:
    """Raise when no plot can be written to ``path``: no matplotlib, an unknown file format or no such folder."""
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
    """A system's name without a final number: the group of "adaptive 0.9" is "adaptive", that of "R = 4" is "R"."""
    return re.sub(r"[ =]+-?\d+(\.\d+)?$", "", name)


def groups(points: Sequence[Point]) -> Dict[str, List[Point]]:
    """Group -> its points by ascending passes; the groups are in the order of their first points."""
    by_group: Dict[str, List[Point]] = {}
    for point in points:
        by_group.setdefault(point.group, []).append(point)
    return {name: sorted(members, key=lambda point: point.passes) for name, members in by_group.items()}


def quality_against_passes(points: Sequence[Point], path: Path, quality: str = "BLEU"):
    """Plot every system as a point, with a line through the points of each group; returns the figure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot, which keeps figures open and needs a display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # two models with every policy are more than ten groups
    for name, members in groups(points).items():
        single = len(members) == 1
        label = members[0].name if single else name
        axes.plot([point.passes for point in members], [point.quality for point in members], marker="o", label=label)
        for point in () if single else members:  # the legend names a single point
            text = point.name.removeprefix(name).strip(" ,=")
            axes.annotate(
                text, (point.passes, point.quality), xytext=(4, 4), textcoords="offset points", fontsize="small"
            )
    axes.set_xlabel("decoder passes a sentence")
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure
