"""A comparison as JSON: everything that was measured, with what it was measured on."""

import json
from datetime import datetime, timezone
from typing import Dict, List, Sequence

from nar_plugins.measure.speed import PERCENTILES, Row, Timing, crossover


def record(rows: Sequence[Row], data: str, arguments: List[str], machine: Dict) -> str:
    """The text of the file of ``--json``; what is missing is null.

    Args:
        data: the folder. arguments: the command line. machine: of ``machine.machine``.
    """
    qualities = [row.quality for row in rows if row.quality is not None]
    content = {
        "command": ["nar-bench", *arguments],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": data,
        "machine": machine,
        "bleu_signature": qualities[0].bleu_signature if qualities else None,
        "chrf_signature": qualities[0].chrf_signature if qualities else None,
        "systems": [system_record(row) for row in rows],
        "crossover": crossover(rows),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def system_record(row: Row) -> Dict:
    """One system; sizes are in bytes, times in seconds."""
    output, quality = row.output, row.quality
    return {
        "name": row.name,
        "checkpoint": row.path,
        "flags": row.flags,
        "autoregressive": row.system and row.system.autoregressive,
        "bleu": quality and quality.bleu,
        "chrf": quality and quality.chrf,
        "passes": output and output.passes,
        "tokens": output and output.tokens,
        "tokens_per_pass": output and output.tokens_per_pass,
        "masks_wasted": output and output.wasted,
        "weight_bytes": row.system.weight_bytes() if output is not None else None,
        "peak_memory_bytes": row.memory,
        "batch_sizes": {size: timing_record(timing) for size, timing in row.timings.items()},
        "errors": row.errors,
    }


def timing_record(timing: Timing) -> Dict:
    """The times of one system at one batch size."""
    lower, upper = timing.quartiles()
    return {
        "sentences": timing.sentences,
        "sentences_per_second": {"median": timing.speed(), "quartiles": [lower, upper], "repeats": timing.speeds()},
        "batch_latency": {f"p{percent}": timing.latency(percent) for percent in PERCENTILES},
        "batches": sum(map(len, timing.seconds)),
    }
