"""Plots of measured systems; needs matplotlib, the extra ``plots``."""
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, NamedTuple


class Point(NamedTuple):
    """One system."""

    name: str
    passes: float
    quality: float


def need_matplotlib() -> None:
    """Raise unless it is installed, before anything is measured for a plot that cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'nar-plugins[plots]'")


def families(points: List[Point]) -> Dict[str, List[Point]]:
    """Systems that differ in their last word only ("adaptive 0.5", "adaptive 0.9"), by passes."""
    found: Dict[str, List[Point]] = {}
    for point in points:
        found.setdefault(point.name.rpartition(" ")[0] or point.name, []).append(point)
    return {family: sorted(members, key=lambda point: point.passes) for family, members in found.items()}


def quality_against_passes(points: List[Point], quality: str, path: Path) -> None:
    """Draw the systems, those of a family joined by a line, into a file of matplotlib's kinds.

    Args:
        quality: what the vertical axis is called.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="decoder passes a sentence", ylabel=quality)
    for family, members in families(points).items():
        axes.plot([p.passes for p in members], [p.quality for p in members], "o-", label=family)
        for p in members if len(members) > 1 else ():
            place = (p.passes, p.quality)
            axes.annotate(p.name.rpartition(" ")[2], place, (4, 4), textcoords="offset points", fontsize=8)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
