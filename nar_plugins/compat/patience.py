"""``--patience`` over several runs of a training."""

from typing import Dict

import fairseq_cli.train


def patience_used() -> Dict[str, float]:
    """What ``--patience`` counts, for a checkpoint: the best validation, and those since; empty before the first.

    fairseq keeps both in attributes of a function alone, so that a training that is started again begins to count anew:
    one that is killed every night never stops. (No upstream issue.)
    """
    stop = fairseq_cli.train.should_stop_early
    return {"best": float(stop.best), "since": int(stop.num_runs)} if hasattr(stop, "best") else {}


def continue_patience(used: Dict[str, float]) -> None:
    """Count on from what a checkpoint has of ``patience_used``."""
    stop = fairseq_cli.train.should_stop_early
    if used:
        stop.best, stop.num_runs = used["best"], used["since"]
