"""A checkpoint of any of fairseq's trainers, into one that loads safely."""

from pathlib import Path
from typing import Dict, List, Tuple

import torch

from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.compat import safe_reader
from nar_plugins.data.whole_file import written_whole


def convert_fairseq(checkpoint: Path, out: Path) -> List[str]:
    """Copy a fairseq checkpoint without what a safe reader does not know; nothing of that is run.

    Outside the model and its arguments an entry that holds such an object is left out whole: of ``extra_state`` and
    ``task_state`` that entry, else everything under its name. Of a training that leaves a state which fairseq can start
    from.

    Args:
        checkpoint: of whatever origin.
        out: the copy, which is there whole or not at all.

    Returns:
        what was left out, and the objects in it, to be shown to the user.

    Raises:
        ValueError: it is no whole checkpoint of fairseq's, or its model or arguments hold such an object.
    """
    state = read_mapped(checkpoint, anything=True)
    if out.exists() and out.samefile(checkpoint):
        raise ValueError(f"--out {out} is the checkpoint itself: give another file")
    known, left_out = known_entries(state)
    for part in ("extra_state", "task_state"):
        if part not in known and isinstance(state.get(part), dict):
            known[part], inside = known_entries(state[part])
            del left_out[part]
            left_out.update({f"{part}.{name}": objects for name, objects in inside.items()})
    if "optimizer_history" in left_out or "optimizer" in left_out:  # the one says what the other is
        known["optimizer_history"] = [unknown_history()]
        known.pop("last_optimizer_state", None)
    if "extra_state" in known or "extra_state" in left_out:
        known.setdefault("extra_state", {}).setdefault("train_iterator", {"epoch": 1, "iterations_in_epoch": 0})
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        torch.save(known, temporary)
    return [f"{name} ({', '.join(objects)})" for name, objects in left_out.items()]


def known_entries(entries: Dict) -> Tuple[Dict, Dict]:
    """The entries that hold plain data only; and of the others the names, with the objects in them."""
    found = {name: sorted(set(safe_reader.not_loaded((name, value)))) for name, value in entries.items()}
    return {name: entries[name] for name in entries if not found[name]}, {name: o for name, o in found.items() if o}


def unknown_history() -> Dict:
    """The last entry of an optimizer's history of which nothing is known."""
    return {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
