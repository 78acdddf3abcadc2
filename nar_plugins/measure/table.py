"""A table of systems side by side: quality, decoder passes and speed."""

from typing import List, Sequence

import torch

from nar_plugins.measure.quality import Quality
from nar_plugins.measure.speed import Output, System


def comparison(
    systems: Sequence[System],
    outputs: Sequence[Output],
    qualities: Sequence[Quality],
    sizes: Sequence[int],
    speeds: Sequence[Sequence[float]],
) -> str:
    """A Markdown table, followed by the metrics' signatures, the device and PyTorch's version.

    Args:
        outputs, qualities: one of each per system.
        sizes: the batch sizes that were timed.
        speeds: for every batch size, the sentences per second of every system.
    """
    bases = systems[:2]  # the last columns divide every speed by theirs
    counts_masks = any(output.wasted is not None for output in outputs)  # else there is no such column
    headings = ["system", "BLEU", "chrF", "passes", *["masks wasted"] * counts_masks]
    units = ["sent/s", "ms/sentence", *(f"x {system.name}" for system in bases)]
    headings += [f"{unit}, batch {size}" for unit in units for size in sizes]
    lines = []
    for i, (system, output, quality) in enumerate(zip(systems, outputs, qualities)):
        wasted = "-" if output.wasted is None else f"{output.wasted:.0%}"
        lines.append(
            [
                system.name,
                f"{quality.bleu:.1f}",
                f"{quality.chrf:.1f}",
                f"{output.passes:.1f}",
                *[wasted] * counts_masks,
                *(f"{speed[i]:.1f}" for speed in speeds),
                *(f"{1000 / speed[i]:.1f}" for speed in speeds),
                *(f"{speed[i] / speed[base]:.2f}" for base in range(len(bases)) for speed in speeds),
            ]
        )
    device = torch.cuda.get_device_name() if systems[0].cuda else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{markdown(headings, lines)}\n\nBLEU: {qualities[0].bleu_signature}\nchrF: {qualities[0].chrf_signature}\n"
        f"{device}, PyTorch {torch.__version__}"
    )


def markdown(headings: List[str], lines: List[List[str]]) -> str:
    """A Markdown table with padded columns."""
    widths = [max(len(line[column]) for line in [headings, *lines]) for column in range(len(headings))]
    padded = (
        [entry.ljust(width) for entry, width in zip(line, widths)]
        for line in [headings, ["-" * width for width in widths], *lines]
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
