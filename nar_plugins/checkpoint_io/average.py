"""Checkpoint averaging: the mean of the parameters of several checkpoints (Vaswani et al. 2017, section 6.1)."""

import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from nar_plugins.checkpoint_io.read import read_mapped, setting
from nar_plugins.checkpoint_io.symbols import kept_symbols
from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.data.whole_file import check_output, written_whole

NAMED_BY_TRAINER = re.compile(r"checkpoint(_\d+_\d+|\d+|\.best_.+|_best|_last).*\.pt$")


class Candidate(NamedTuple):
    """A checkpoint of a run, without its tensors."""

    path: Path
    update: int  # number of updates
    score: Optional[float]  # the last value of --best-checkpoint-metric; None before the first validation
    higher_is_better: bool


def candidates(folder: Path) -> List[Candidate]:
    """The checkpoints of fairseq-train in a folder, one per update, oldest first.

    ``checkpoint_best.pt`` and ``checkpoint_last.pt`` may be copies of others; an update counts once.

    Raises:
        ValueError: there is no checkpoint.
    """
    by_update: Dict[int, Candidate] = {}
    for path in sorted(folder.glob("checkpoint*.pt")):
        if not NAMED_BY_TRAINER.match(path.name):
            continue
        state = read_mapped(path)
        history, extra = state.get("optimizer_history") or [{}], state.get("extra_state") or {}
        update = int(history[-1].get("num_updates", 0))
        score = extra.get("val_loss")
        higher = bool(setting(state, "checkpoint", "maximize_best_checkpoint_metric"))
        duplicate = by_update.get(update)
        if duplicate is None or (duplicate.score is None and score is not None):
            by_update[update] = Candidate(path, update, None if score is None else float(score), higher)
    if not by_update:
        raise ValueError(f"{folder} has no checkpoint of fairseq-train: give its --save-dir")
    return [by_update[update] for update in sorted(by_update)]


def choose(folder: Path, last: Optional[int] = None, best: Optional[int] = None) -> List[Path]:
    """The last checkpoints of a run, or the best by validation score, oldest first.

    Exactly one of ``last`` and ``best``, the number of checkpoints, is given.

    Raises:
        ValueError: the folder has fewer checkpoints.
    """
    available = candidates(folder)
    if best is not None:
        available = [candidate for candidate in available if candidate.score is not None]
        sign = -1 if available and available[0].higher_is_better else 1
        available.sort(key=lambda candidate: sign * candidate.score)
    number = last if best is None else best
    if len(available) < number:
        kind = "" if best is None else "validated "
        raise ValueError(
            f"{folder} has {len(available)} {kind}checkpoints and {number} are asked for: train with "
            f"--keep-last-epochs or --keep-best-checkpoints {number}"
        )
    chosen = available[-number:] if best is None else available[:number]
    return [candidate.path for candidate in sorted(chosen, key=lambda candidate: candidate.update)]


def average(paths: Sequence[Path], out: Path) -> Dict:
    """Write a checkpoint with the mean of several checkpoints' parameters; other entries are those of the last.

    Sums are float64; the means have the parameters' type. Shared parameters are averaged once and stay shared. Integers
    (counters) are the last checkpoint's. The optimizer's state is left out, as it would not fit the mean: the result is
    for decoding, for ``--finetune-from-model``, and as a teacher.

    Args:
        paths: two or more checkpoints of one model and one dictionary.
        out: the new checkpoint, written atomically.

    Returns:
        the new checkpoint's state.

    Raises:
        ValueError: there are fewer than two, one is given twice, or their models or dictionaries differ; the first
            difference is named. Or ``out`` cannot be written.
    """
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise ValueError("an average needs two checkpoints at least")
    check_output(out, "--out", makes_folder=True)
    for number, path in enumerate(paths):
        if path.resolve() in {other.resolve() for other in paths[:number]}:
            raise ValueError(f"{path} is given twice: it would count twice")
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"--out {out} is one of the checkpoints: give another file")
    state = read_mapped(paths[-1])
    sums = {name: value.double() for name, value in floating(state["model"])}
    for path in paths[:-1]:
        other = read_mapped(path)
        check_same_model(state, other, paths[-1], path)
        for name, value in floating(other["model"]):
            if name in sums:  # a shared parameter is summed under its first name
                sums[name] += value
    for name, value in floating(state["model"]):
        value.copy_(sums[name] / len(paths))
    state["last_optimizer_state"] = None
    state.setdefault("extra_state", {})["averaged"] = [path.name for path in paths]
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        torch.save(state, temporary)
    return state


def floating(model: Dict[str, Tensor]) -> Iterator[tuple]:
    """The floating-point parameters; a shared one only under the first of its names."""
    seen = set()
    for name, value in model.items():
        memory = (value.data_ptr(), value.shape, value.stride())
        if value.is_floating_point() and (value.numel() == 0 or memory not in seen):
            seen.add(memory)
            yield name, value


def check_same_model(mine: Dict, theirs: Dict, path: Path, other: Path) -> None:
    """Raise unless two checkpoints have the same model and dictionaries; the first difference is named."""
    arch, other_arch = (setting(state, "model", "arch") for state in (mine, theirs))
    if arch != other_arch:
        raise ValueError(
            f"{other} is a {other_arch} and {path} a {arch}: only checkpoints of one model have an average"
        )
    for name in sorted({*mine["model"]} ^ {*theirs["model"]}):
        has, lacks = (path, other) if name in mine["model"] else (other, path)
        raise ValueError(f"{has} has a {name} and {lacks} has none: only checkpoints of one model have an average")
    for name, value in mine["model"].items():
        if value.shape != theirs["model"][name].shape:
            raise ValueError(
                f"{name} is {tuple(theirs['model'][name].shape)} in {other} and {tuple(value.shape)} in {path}: only "
                "checkpoints of one model have an average"
            )
    symbols, others = (kept_symbols(state.get("task_state")) for state in (mine, theirs))
    for side in symbols.keys() & others.keys():
        check_same_symbols(others[side], symbols[side], f"the {side} dictionary of {path}")
