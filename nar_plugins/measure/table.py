"""Tables of systems side by side: quality, decoder passes, speed, latency and memory."""

from typing import Dict, List, Optional, Sequence

from nar_plugins.measure.speed import PERCENTILES, Row

MISSING = "-"


def comparison(rows: Sequence[Row], sizes: Sequence[int], machine: Dict) -> str:
    """A Markdown table, followed by the metrics' signatures, the device and PyTorch's version.

    A system that failed has the reason in a last column.

    Args:
        sizes: the batch sizes that were timed.
        machine: of ``machine.machine``.
    """
    bases = rows[:2]  # the last columns divide every speed by theirs
    counts_masks = any(row.output and row.output.wasted is not None for row in rows)  # else there is no such column
    fails = any(row.errors for row in rows)
    headings = ["system", "BLEU", "chrF", "passes", *["masks wasted"] * counts_masks]
    units = ["sent/s", "ms/sentence", *(f"x {in_cell(base.name)}" for base in bases)]
    headings += [f"{unit}, batch {size}" for unit in units for size in sizes] + ["error"] * fails
    lines = []
    for row in rows:
        quality, output = row.quality, row.output
        wasted = None if output is None else output.wasted
        speeds = [row.speed(size) for size in sizes]
        ratios = [ratio(row.speed(size), base.speed(size)) for base in bases for size in sizes]
        lines.append(
            [
                in_cell(row.name),
                shown(quality and quality.bleu, "{:.1f}"),
                shown(quality and quality.chrf, "{:.1f}"),
                shown(output and output.passes, "{:.1f}"),
                *[shown(wasted, "{:.0%}")] * counts_masks,
                *(shown(speed, "{:.1f}") for speed in speeds),
                *(shown(speed and 1000 / speed, "{:.1f}") for speed in speeds),
                *(shown(value, "{:.2f}") for value in ratios),
                *[in_cell("; ".join(row.errors))] * fails,
            ]
        )
    signatures = next((row.quality for row in rows if row.quality is not None), None)
    scores = f"BLEU: {signatures.bleu_signature}\nchrF: {signatures.chrf_signature}\n" if signatures else ""
    device = machine["device"] if machine["device"] != "CPU" else f"CPU, {machine['threads']} threads"
    return f"{markdown(headings, lines)}\n\n{scores}{device}, PyTorch {machine['versions']['torch']}"


def details(rows: Sequence[Row], machine: Dict) -> str:
    """A Markdown table with a line for each system and batch size, followed by the processor and the versions.

    Speeds are medians of the repeats with quartiles, latencies the percentiles of all batches of all repeats.
    """
    headings = ["system", "batch", "sent/s (quartiles)", "ms a batch: p50", "p90", "p99", "tokens/pass", "weights, MB"]
    headings += ["peak memory, MB"] * any(row.memory is not None for row in rows)
    lines = []
    for row in rows:
        for size, timing in row.timings.items():
            lower, upper = timing.quartiles()
            line = [
                in_cell(row.name),
                str(size),
                f"{timing.speed():.1f} ({lower:.1f} to {upper:.1f})",
                *(f"{1000 * timing.latency(percent):.1f}" for percent in PERCENTILES),
                f"{row.output.tokens_per_pass:.2f}",
                f"{row.system.weight_bytes() / 1e6:.1f}",
                shown(row.memory and row.memory / 1e6, "{:.0f}"),
            ]
            lines.append(line[: len(headings)])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} threads"
    return f"{markdown(headings, lines)}\n\n{cpu}, Python {machine['python']}, {versions}"


def in_cell(text: str) -> str:
    """A text in one line that ends no cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def ratio(speed: Optional[float], base: Optional[float]) -> Optional[float]:
    """A speed relative to another; None where one of them is missing."""
    return None if speed is None or base is None else speed / base


def shown(value: Optional[float], form: str) -> str:
    """A number in a form, or the sign for a missing one."""
    return MISSING if value is None else form.format(value)


def markdown(headings: List[str], lines: List[List[str]]) -> str:
    """A Markdown table with padded columns."""
    widths = [max(len(line[column]) for line in [headings, *lines]) for column in range(len(headings))]
    padded = (
        [entry.ljust(width) for entry, width in zip(line, widths)]
        for line in [headings, ["-" * width for width in widths], *lines]
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
