"""A comparison as JSON: everything that was measured, with what it was measured on."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

from nar_plugins.data.lines import read_lines
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


def read_record(path: Union[str, Path]) -> Dict[str, Any]:
    """The content of a file of ``record``.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    text = "\n".join(read_lines(path))
    wrong = f"{path} is no JSON of nar-bench --json"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    systems = content.get("systems") if isinstance(content, dict) else None
    if not isinstance(systems, list) or not systems:
        raise ValueError(f"{wrong}: it has no 'systems'")
    for name, kind in (("command", list), ("machine", dict)):
        if not isinstance(content.get(name) or kind(), kind):
            raise ValueError(f"{wrong}: its '{name}' is {type(content[name]).__name__}")
    for system in systems:
        if not isinstance(system, dict) or not isinstance(system.get("name"), str):
            raise ValueError(f"{wrong}: a system has no name")
        for name in ("bleu", "chrf", "passes"):
            if not is_number(system.get(name, "")) and system.get(name, "") is not None:
                raise ValueError(f"{wrong}: system {system['name']} has no figure '{name}'")
        times = system.get("batch_sizes")
        if not isinstance(times, dict) or not all(is_timing(*item) for item in times.items()):
            raise ValueError(f"{wrong}: system {system['name']} has no 'batch_sizes' with sentences_per_second")
    return content


def is_timing(size: str, value: Any) -> bool:
    """Whether a value is of ``timing_record``, with its batch size as JSON has it."""
    speeds = value.get("sentences_per_second") if isinstance(value, dict) else None
    median = speeds.get("median") if isinstance(speeds, dict) else None
    return size.isdecimal() and is_number(median) and median > 0


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
