"""Copies of fairseq checkpoints without the objects that the safe loader refuses."""

from pathlib import Path
from typing import Dict, List, Tuple

import torch

from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.compat import safe_reader
from nar_plugins.data.whole_file import check_output, written_whole


def convert_fairseq(checkpoint: Path, out: Path) -> List[str]:
    """Copy a fairseq checkpoint without the objects that the safe loader refuses; no code from it is run.

    Outside the model and its arguments, an entry with such an object is left out: in ``extra_state`` and ``task_state``
    that entry only, else the whole top-level entry. fairseq can start a training from the copy.

    Args:
        checkpoint: a checkpoint of any origin.
        out: the copy, written atomically.

    Returns:
        the entries that were left out, with the objects in them, for the user.

    Raises:
        ValueError: it is no complete fairseq checkpoint, or its model or arguments have such an object.
    """
    check_output(out, "--out", makes_folder=True)
    state = read_mapped(checkpoint, any_objects=True)
    if out.exists() and out.samefile(checkpoint):
        raise ValueError(f"--out {out} is the checkpoint itself: give another file")
    kept, left_out = split_entries(state)
    for part in ("extra_state", "task_state"):
        if part not in kept and isinstance(state.get(part), dict):
            kept[part], part_left_out = split_entries(state[part])
            del left_out[part]
            left_out.update({f"{part}.{name}": objects for name, objects in part_left_out.items()})
    if "optimizer_history" in left_out or "optimizer" in left_out:  # each is useless without the other
        kept["optimizer_history"] = [empty_history()]
        kept.pop("last_optimizer_state", None)
    if "extra_state" in kept or "extra_state" in left_out:
        kept.setdefault("extra_state", {}).setdefault("train_iterator", {"epoch": 1, "iterations_in_epoch": 0})
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        torch.save(kept, temporary)
    return [f"{name} ({', '.join(objects)})" for name, objects in left_out.items()]


def split_entries(entries: Dict) -> Tuple[Dict, Dict]:
    """The entries with plain data only; and the names of the others, with the objects in them."""
    objects = {name: sorted(set(safe_reader.not_loaded((name, value)))) for name, value in entries.items()}
    plain = {name: value for name, value in entries.items() if not objects[name]}
    return plain, {name: names for name, names in objects.items() if names}


def empty_history() -> Dict:
    """An entry of ``optimizer_history`` without information."""
    return {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
