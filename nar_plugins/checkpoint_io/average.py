"""One model of several checkpoints of a run: the mean of their parameters (Vaswani et al. 2017, section 6.1)."""

import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.checkpoint_io.symbols import kept_symbols
from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.data.whole_file import written_whole

NAMED_BY_TRAINER = re.compile(r"checkpoint(_\d+_\d+|\d+|\.best_.+|_best|_last).*\.pt$")


class Candidate(NamedTuple):
    """A checkpoint of a run, without its tensors."""

    path: Path
    update: int  # how many updates the model has had
    score: Optional[float]  # the last value of --best-checkpoint-metric; None before the first validation
    higher_is_better: bool


def candidates(folder: Path) -> List[Candidate]:
    """The checkpoints that fairseq-train wrote into a folder, one an update, oldest first.

    ``checkpoint_best.pt`` and ``checkpoint_last.pt`` are copies of others, which then count once.

    Raises:
        ValueError: there are none.
    """
    found: Dict[int, Candidate] = {}
    for path in sorted(folder.glob("checkpoint*.pt")):
        if not NAMED_BY_TRAINER.match(path.name):
            continue
        state = read_mapped(path)
        history, extra = state.get("optimizer_history") or [{}], state.get("extra_state") or {}
        update = int(history[-1].get("num_updates", 0))
        score = extra.get("val_loss")
        higher = bool(setting(state, "checkpoint", "maximize_best_checkpoint_metric"))
        known = found.get(update)
        if known is None or (known.score is None and score is not None):
            found[update] = Candidate(path, update, None if score is None else float(score), higher)
    if not found:
        raise ValueError(f"{folder} has no checkpoint of fairseq-train: give its --save-dir")
    return [found[update] for update in sorted(found)]


def setting(state: Dict, group: str, name: str):
    """An option of a checkpoint's training, None where it is not there; old trainers kept a flat ``args``."""
    if state.get("cfg"):
        options = state["cfg"].get(group) or {}
        return options.get(name) if hasattr(options, "get") else getattr(options, name, None)
    return getattr(state.get("args"), name, None)


def choose(folder: Path, last: Optional[int] = None, best: Optional[int] = None) -> List[Path]:
    """The last checkpoints of a run, or the best by validation, oldest first.

    Exactly one of ``last`` and ``best`` is given: how many.

    Raises:
        ValueError: the folder has not so many.
    """
    there = candidates(folder)
    if best is not None:
        there = [candidate for candidate in there if candidate.score is not None]
        sign = -1 if there and there[0].higher_is_better else 1
        there.sort(key=lambda candidate: sign * candidate.score)
    wanted = last if best is None else best
    if len(there) < wanted:
        kind = "" if best is None else "validated "
        raise ValueError(
            f"{folder} has {len(there)} {kind}checkpoints and {wanted} are asked for: train with --keep-last-epochs or "
            f"--keep-best-checkpoints {wanted}"
        )
    chosen = there[-wanted:] if best is None else there[:wanted]
    return [candidate.path for candidate in sorted(chosen, key=lambda candidate: candidate.update)]


def average(paths: Sequence[Path], out: Path) -> Dict:
    """Write a checkpoint whose parameters are the mean of several, and everything else the last one's.

    Sums are made in float64 and stored in the parameters' own type; parameters that share memory are averaged once and
    share it again; integers (counters) are the last checkpoint's. The optimizer's state, which fits none of them, is
    left out: the result is for decoding, for ``--finetune-from-model``, and as a teacher.

    Args:
        paths: two checkpoints or more, of one model and one dictionary.
        out: the new checkpoint, which is there whole or not at all.

    Returns:
        the new checkpoint's state.

    Raises:
        ValueError: there are fewer than two, one is given twice, or they are not of one model or of one dictionary; the
            first difference is named.
    """
    paths = [Path(path) for path in paths]
    if len(paths) < 2:
        raise ValueError("an average needs two checkpoints at least")
    for number, path in enumerate(paths):
        if path.resolve() in {other.resolve() for other in paths[:number]}:
            raise ValueError(f"{path} is given twice: it would count twice")
        if out.exists() and out.samefile(path):
            raise ValueError(f"--out {out} is one of the checkpoints: give another file")
    state = read_mapped(paths[-1])
    sums = {name: value.double() for name, value in floating(state["model"])}
    for path in paths[:-1]:
        other = read_mapped(path)
        check_alike(state, other, paths[-1], path)
        for name, value in floating(other["model"]):
            if name in sums:  # the first name of what is shared
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
    """The names and tensors that have a mean, each piece of memory once, under the first of its names."""
    seen = set()
    for name, value in model.items():
        place = (value.data_ptr(), value.shape, value.stride())
        if value.is_floating_point() and (value.numel() == 0 or place not in seen):
            seen.add(place)
            yield name, value


def check_alike(mine: Dict, theirs: Dict, path: Path, other: Path) -> None:
    """Raise unless two checkpoints are of one model and one dictionary, naming the first difference."""
    arch, found = (setting(state, "model", "arch") for state in (mine, theirs))
    if arch != found:
        raise ValueError(f"{other} is a {found} and {path} a {arch}: only checkpoints of one model have an average")
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
