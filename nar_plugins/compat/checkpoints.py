"""Checkpoints: read without running anything, refused in one line that says what to do."""

import argparse
import os
import pickle
import types
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from fairseq import checkpoint_utils
from fairseq.optim import FairseqOptimizer

from nar_plugins.compat import safe_reader
from nar_plugins.compat.replace import replaces
from nar_plugins.compat.safe_reader import CheckpointError

RUN = "checkpoint*.pt"  # what fairseq-train writes
REFUSALS = ("GLOBAL", "Can only ")  # in the safe unpickler's messages about an object, not about broken bytes


def allow_namespace_in_checkpoints() -> None:
    """Let fairseq's checkpoints load while PyTorch still refuses everything that could run code.

    Since PyTorch 2.6 ``torch.load`` reads tensors and plain containers only; fairseq keeps its arguments in an
    ``argparse.Namespace``, a plain container too. It alone is allowed; ``weights_only`` stays on.
    (facebookresearch/fairseq#5610)
    """
    torch.serialization.add_safe_globals([argparse.Namespace])


class SafeTorch(types.ModuleType):
    """``torch``, but for ``load``."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def load(file, *args, **kwargs):
        """The checkpoint on the CPU, where fairseq wants it, with what it asks every checkpoint for."""
        return completed(safe_reader.read(file))


def read_checkpoints_safely() -> None:
    """Let fairseq read what its own trainers write: metrics with NumPy's arrays, meters of older versions.

    PyTorch's safe unpickler refuses both. ``safe_reader`` tells how they are read instead; nothing is allowed for good,
    and nothing but fairseq's module for checkpoints reads in this way. (facebookresearch/fairseq#5603)
    """
    if not isinstance(checkpoint_utils.torch, SafeTorch):
        checkpoint_utils.torch = SafeTorch("torch")


def completed(state):
    """A checkpoint that holds a model and its arguments, with an empty history where it has none: fairseq would raise
    KeyErrors.

    What decodes or starts another model needs no more; a training that goes on from it is told to reset the optimizer.
    """
    if isinstance(state, dict) and "model" in state:
        if not state.get("optimizer_history") and "best_loss" not in state:
            nothing = {"criterion_name": "none", "optimizer_name": "none", "lr_scheduler_state": {}, "num_updates": 0}
            state.update(optimizer_history=[nothing], last_optimizer_state=state.get("last_optimizer_state"))
        if "extra_state" not in state and "epoch" not in state:
            state["extra_state"] = {}
    return state


def explain_unreadable_checkpoints() -> None:
    """Turn PyTorch's error for a truncated, foreign or unsafe checkpoint into one line that says what to do.

    fairseq copies ``checkpoint_last.pt`` without an atomic rename, so a process killed in that moment leaves it short;
    the message then names the newest whole checkpoint beside it. (facebookresearch/fairseq#2684)
    """

    @replaces(checkpoint_utils, "load_checkpoint_to_cpu")
    def load_checkpoint_to_cpu(load, path, *args, **kwargs):
        checked(path)
        return load(path, *args, **kwargs)


def explain_foreign_optimizer_states() -> None:
    """Say which flag a training needs that goes on from a checkpoint of another task, without ``<mask>``.

    The model gets the row that it lacks; the optimizer's state does not, and PyTorch looks at its shapes in the first
    update only. (No upstream issue.)
    """

    @replaces(FairseqOptimizer, "load_state_dict")
    def load_state_dict(load, self, *args, **kwargs):
        load(self, *args, **kwargs)
        for parameter, state in self.optimizer.state.items():
            for value in state.values():
                if torch.is_tensor(value) and value.dim() == parameter.dim() and value.shape != parameter.shape:
                    there, here = tuple(value.shape), tuple(parameter.shape)
                    raise ValueError(
                        f"the checkpoint's optimizer has a state of {there} for a parameter that is {here} here, as "
                        "of a model without <mask>: give --reset-optimizer"
                    )


def checked(path, anything: bool = False, advise: bool = True) -> Dict:
    """A whole fairseq checkpoint, read without running code from it.

    The tensors are mapped into memory, not read, so that this costs milliseconds on a checkpoint of any size.

    Args:
        anything: what cannot be loaded may be of any origin, and stand anywhere but in the model and its arguments.
        advise: let the message for a broken file name the checkpoint to take instead.

    Raises:
        CheckpointError: it is absent, cut short, foreign, or holds what could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path that you gave")
    try:
        state = safe_reader.read(path, zipfile.is_zipfile(path), anything)
    except Exception as error:  # the bytes of a foreign file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and any(words in str(error) for words in REFUSALS):
            way_out = "give another checkpoint"
            if safe_reader.refused_names(error) and not anything:
                way_out = f"nar-convert fairseq {path} --out FILE writes a copy without them"
            raise CheckpointError(
                f"{path} holds objects that could run code when loaded ({first_line(error)}): not loaded; {way_out}"
            ) from error
        advice = f"; {advice_for(path)}" if advise else ""
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint{advice}") from error
    for part in ("model", "args", "cfg", *([] if anything else ["task_state"])):
        for name in safe_reader.not_loaded(state.get(part) if isinstance(state, dict) else None):
            raise CheckpointError(
                f"{path} holds a {name} in its '{part}', where only plain data can be used: not loaded"
            )
    kinds = {"model": dict, "args": (argparse.Namespace, type(None)), "cfg": (dict, type(None))}
    fits = isinstance(state, dict) and all(isinstance(state.get(part), kind) for part, kind in kinds.items())
    if not fits or not (state.get("args") or state.get("cfg")):
        raise CheckpointError(
            f"{path} is no fairseq checkpoint (it lacks 'model' and 'cfg' or 'args'): "
            "convert it first (nar-convert) or give another file"
        )
    return state


def first_line(error: BaseException) -> str:
    """The part of PyTorch's long message that names the refused object."""
    text = str(error)
    for line in text.splitlines():
        if "Unsupported" in line or any(words in line for words in REFUSALS):
            return line.split("WeightsUnpickler error:")[-1].strip().split(". ")[0]
    return text.splitlines()[0] if text else type(error).__name__


def advice_for(path: Path) -> str:
    """What the message for a truncated or foreign file says of the checkpoints beside it: the newest whole one, if it
    fits.
    """
    beside = whole_checkpoints(path)
    if not beside:
        return "no whole checkpoint stands beside it"
    newest = beside[0][0]
    if not path.match(RUN) or any(shapes != beside[0][1] for _, shapes in beside):
        return (
            f"whole checkpoints stand beside it ({newest.name}), but nothing tells which of them are of the same model"
        )
    return (
        f"the newest whole checkpoint is {newest}: give it instead (to go on with a training: --restore-file), or copy "
        "it "
        f"over {path.name}"
    )


def whole_checkpoints(path: Path) -> List[Tuple[Path, Dict]]:
    """The checkpoints beside ``path`` that fairseq-train may have written there and that load, with the shapes of their
    parameters by name; the newest first."""
    whole = []
    for other in sorted(path.parent.glob(RUN), key=os.path.getmtime, reverse=True):
        if other == path:
            continue
        try:
            model = checked(other, advise=False)["model"]
            whole.append((other, {name: tuple(value.shape) for name, value in model.items()}))
        except (CheckpointError, AttributeError):  # a model that is no table of tensors is none of fairseq's
            continue
    return whole
