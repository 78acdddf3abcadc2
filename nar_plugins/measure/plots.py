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


def check_matplotlib(what: str) -> None:
    """Raise where matplotlib is missing; ``what`` needs it."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{what} needs matplotlib: pip install 'nar-plugins[plots]'")


def check_plot(path: Path, flag: str = "--plot") -> None:
    """Raise when no plot can be written to ``path``: no matplotlib, an unknown file format, or as of any file.

    Args:
        flag: the option that names the file, for the message.
    """
    check_matplotlib(flag)
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
    panels: Sequence[Tuple[int, Sequence[Point]]],
    baseline: str,
    path: Path,
    quality: str = "BLEU",
    with_frontier: bool = False,
):
    """Plot every system against its speed, on a logarithmic axis, one panel a batch size; returns the figure.

    Args:
        panels: (batch size, points), with speeds relative to the baseline's at that batch size.
        baseline: name of the system whose speed is 1.
        with_frontier: draw a line through the systems that no other one beats in both.
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
        if with_frontier:
            best = frontier(points)
            places = [point.x for point in best], [point.quality for point in best]
            axes.plot(*places, color="black", linewidth=1, linestyle="--", zorder=1, label="frontier")
        axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axes.label_outer()
    columns[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    return figure


def frontier(points: Sequence[Point]) -> List[Point]:
    """The points, from the left, that no other one beats: as far right and as high, and better in one of the two."""
    best: List[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.quality), reverse=True):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best[::-1]


def histogram(counts: Sequence[Tuple[str, Dict[int, int]]], path: Path, label: str, unit: str):
    """Plot how often each value occurs, as a share of all, one colour a system; returns the figure.

    Args:
        counts: (name, value -> how often) of every system.
        label: what the values are. unit: what is counted.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(counts)
    for number, (name, found) in enumerate(counts):
        everything, shift = sum(found.values()), (number - (len(counts) - 1) / 2) * width
        values = sorted(found)
        axes.bar(
            [value + shift for value in values],
            [found[value] / everything for value in values],
            width,
            color=colormaps["tab20"].colors[number % 20],
            label=shown(name),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(label)
    axes.set_ylabel(f"share of {unit}")
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure


def repetition_plot(systems: Sequence[Tuple[str, float, Sequence[float]]], path: Path):
    """Plot the share of repeated words of every system and, where there is one with a history, after each pass.

    Args:
        systems: (name, share of the output, shares after each pass or none).

    Returns:
        the figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    colours = colormaps["tab20"].colors
    by_pass = [number for number, (_, _, shares) in enumerate(systems) if len(shares) > 1]
    figure = Figure(figsize=(7 if by_pass else 5, 0.45 * len(systems) + (5 if by_pass else 1.5)), layout="constrained")
    panels = figure.subplots(2 if by_pass else 1, 1, squeeze=False)[:, 0]
    names = [shown(name) for name, _, _ in systems]
    values = [value for _, value, _ in systems]
    bars = panels[0].barh(range(len(names)), values, color=[colours[i % 20] for i in range(len(names))])
    panels[0].bar_label(bars, [f"{value:.2%}" for value in values], padding=3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    panels[0].margins(x=0.15)
    panels[0].xaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_xlabel("words that equal the word before")
    for number in by_pass:
        name, _, shares = systems[number]
        panels[1].plot(range(1, len(shares) + 1), shares, marker="o", color=colours[number % 20], label=shown(name))
    if by_pass:
        panels[1].set_xlabel("decoder passes")
        panels[1].set_ylabel("repeated tokens")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
        panels[1].grid(alpha=0.3)
        panels[1].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    return figure


def speed_panels(points: List[Point], sizes: List[int], speeds: List[List[float]]) -> List[Tuple[int, List[Point]]]:
    """(batch size, the points at their speed relative to the first system's) of the smallest and the largest size.

    Args:
        points: one per system.
        sizes, speeds: the batch sizes that were timed, and for each the sentences per second of every system.
    """
    by_size = dict(zip(sizes, speeds))
    return [
        (size, [point._replace(x=speed / by_size[size][0]) for point, speed in zip(points, by_size[size])])
        for size in sorted({min(sizes), max(sizes)})
    ]
