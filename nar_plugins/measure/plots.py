"""Plots of quality against decoder passes and speed; they need matplotlib (the extra ``plots``)."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from nar_plugins.data.whole_file import check_output


class Point(NamedTuple):
    """The measurements of one system."""

    name: str
    x: float  # decoder passes per sentence, or speed
    quality: float
    group: str  # a line joins the points of a group


def check_plot(path: Path, flag: str = "--plot") -> None:
    """Raise when no plot can be written to ``path``: no matplotlib, an unknown file format, or as of any file.

    Args:
        flag: the option that names the file, for the message.
    """
    if find_spec("matplotlib") is None:
        raise ValueError(f"{flag} needs matplotlib: pip install 'nar-plugins[plots]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(
            f"{flag} {path}: the name must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}"
        )
    check_output(path, flag)


def shown(name: str) -> str:
    """A name as matplotlib shows it: ``$`` begins no formula, and ``_`` does not hide it from the legend."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def group(name: str) -> str:
    """A system's name without a final number: the group of "adaptive 0.9" is "adaptive", that of "R = 4" is "R"."""
    return re.sub(r"[ =]+-?\d+(\.\d+)?$", "", name)


def groups(points: Sequence[Point]) -> Dict[str, List[Point]]:
    """Group -> its points from left to right; the groups are in the order of their first points."""
    by_group: Dict[str, List[Point]] = {}
    for point in points:
        by_group.setdefault(point.group, []).append(point)
    return {name: sorted(members, key=lambda point: point.x) for name, members in by_group.items()}


def draw(axes, points: Sequence[Point], label: str, quality: str) -> None:
    """Draw every system as a point, with a line through the points of each group.

    Args:
        axes: of matplotlib.
        label, quality: what the horizontal and the vertical axis measure.
    """
    from matplotlib import colormaps

    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # two models with every policy are more than ten groups
    for name, members in groups(points).items():
        single = len(members) == 1
        line = members[0].name if single else name
        axes.plot([point.x for point in members], [point.quality for point in members], marker="o", label=shown(line))
        for point in () if single else members:  # the legend names a single point
            text = point.name.removeprefix(name).strip(" ,=")
            axes.annotate(
                shown(text), (point.x, point.quality), xytext=(4, 4), textcoords="offset points", fontsize="small"
            )
    axes.set_xlabel(label)
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)


def quality_against_passes(points: Sequence[Point], path: Path, quality: str = "BLEU"):
    """Plot every system against its decoder passes; returns the figure."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures open and needs a display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, points, "decoder passes a sentence", quality)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure


def quality_against_speed(
    panels: Sequence[Tuple[int, Sequence[Point]]], baseline: str, path: Path, quality: str = "BLEU"
):
    """Plot every system against its speed, on a logarithmic axis, one panel a batch size; returns the figure.

    Args:
        panels: (batch size, points), with speeds relative to the baseline's at that batch size.
        baseline: name of the system whose speed is 1.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(1 + 5.5 * len(panels), 4.5), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (size, points) in zip(columns, panels):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # 0.5, 1, 2 and not powers of two
        axes.xaxis.set_minor_formatter(NullFormatter())
        draw(axes, points, f"speed (x {shown(baseline)}), batch {size}", quality)
        axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axes.label_outer()
    columns[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    return figure
