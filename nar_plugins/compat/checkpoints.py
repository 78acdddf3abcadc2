"""Checkpoints: loading never runs code from them, and errors are one line that says what to do."""

import argparse
import os
import pickle
import types
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from fairseq import checkpoint_utils
from fairseq.optim import FairseqOptimizer
from fairseq.trainer import Trainer

from nar_plugins.compat import safe_reader
from nar_plugins.compat.replace import replaces
from nar_plugins.compat.safe_reader import CheckpointError

RUN = "checkpoint*.pt"  # the files that fairseq-train writes
REFUSALS = ("GLOBAL", "Can only ")  # phrases of the safe unpickler for refused objects, not for damaged files


def allow_namespace_in_checkpoints() -> None:
    """Allow ``argparse.Namespace`` in PyTorch's safe loader, and nothing else.

    Since PyTorch 2.6 ``torch.load`` reads tensors and plain containers only (``weights_only``). fairseq keeps its
    arguments in a ``Namespace``, which is a plain container, too.
    (facebookresearch/fairseq#5610)
    """
    torch.serialization.add_safe_globals([argparse.Namespace])


class SafeTorch(types.ModuleType):
    """``torch`` with another ``load``."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def load(file, *args, **kwargs):
        """The checkpoint on the CPU, with the entries that fairseq requires."""
        return completed(safe_reader.read(file))


def read_checkpoints_safely() -> None:
    """Let fairseq load the checkpoints of its own trainers: metrics with NumPy arrays, meters of older versions.

    PyTorch's safe unpickler refuses both; ``safe_reader`` explains how they are read. It allows nothing permanently,
    and only fairseq's module for checkpoints uses it. (facebookresearch/fairseq#5603)
    """
    if not isinstance(checkpoint_utils.torch, SafeTorch):
        checkpoint_utils.torch = SafeTorch("torch")


def completed(state):
    """Add an empty optimizer history and extra state to a checkpoint without them, for which fairseq raises KeyErrors.

    Decoding, and starting another model, need no more. A training that continues from it must reset the optimizer.
    """
    if isinstance(state, dict) and "model" in state:
        if not state.get("optimizer_history") and "best_loss" not in state:
            empty = {"criterion_name": "none", "optimizer_name": "none", "lr_scheduler_state": {}, "num_updates": 0}
            state.update(optimizer_history=[empty], last_optimizer_state=state.get("last_optimizer_state"))
        if "extra_state" not in state and "epoch" not in state:
            state["extra_state"] = {}
    return state


def explain_unreadable_checkpoints() -> None:
    """Turn PyTorch's error for a truncated, foreign or unsafe checkpoint into one line that says what to do.

    fairseq copies ``checkpoint_last.pt`` without an atomic rename, so a process that is killed then leaves it
    truncated. The message names the newest complete checkpoint in the same folder. (facebookresearch/fairseq#2684)
    """

    @replaces(checkpoint_utils, "load_checkpoint_to_cpu")
    def load_checkpoint_to_cpu(load, path, *args, **kwargs):
        checked(path)
        return load(path, *args, **kwargs)


def explain_foreign_optimizer_states() -> None:
    """Name the flag that a training needs to continue from a checkpoint without ``<mask>``, of another task.

    The model's tables get the missing row, the optimizer's state does not, and PyTorch compares the shapes in the first
    update only. (No upstream issue.)
    """

    @replaces(FairseqOptimizer, "load_state_dict")
    def load_state_dict(load, self, *args, **kwargs):
        load(self, *args, **kwargs)
        for parameter, state in self.optimizer.state.items():
            for value in state.values():
                if torch.is_tensor(value) and value.dim() == parameter.dim() and value.shape != parameter.shape:
                    stored, expected = tuple(value.shape), tuple(parameter.shape)
                    raise ValueError(
                        f"the checkpoint's optimizer has a state of {stored} for a parameter that is {expected} here, "
                        "as of a model without <mask>: give --reset-optimizer"
                    )


def name_checkpoints_that_cannot_be_written() -> None:
    """Name the file in the error of a full disk, and leave no part of it.

    PyTorch's error is about the writer of its zip files, and the system's does not name a file that is open; fairseq
    leaves ``.tmp`` until the next checkpoint, which needs the room. (No upstream issue.)
    """

    @replaces(checkpoint_utils, "torch_persistent_save")
    def torch_persistent_save(save, obj, filename, *args, **kwargs):
        try:
            return save(obj, filename, *args, **kwargs)
        except (OSError, RuntimeError) as error:
            reason = system_error(error)
            with suppress(OSError):
                os.unlink(f"{filename}.tmp")
            if reason is None:
                raise
            raise OSError(reason.errno, reason.strerror, str(filename)) from error


def keep_the_tasks_state() -> None:
    """Let fairseq 0.12.2 save and restore what the task adds to a training's state, as fairseq 0.12.3 does.

    It calls neither ``get_checkpoint_dict`` nor ``set_checkpoint_dict``: a training would continue with the data of
    another dictionary, and count ``--patience`` anew. (No upstream issue.)
    """
    if "get_checkpoint_dict" in checkpoint_utils.save_checkpoint.__code__.co_names:
        return

    @replaces(Trainer, "save_checkpoint")
    def save_checkpoint(save, self, filename, extra_state):
        if hasattr(self.task, "get_checkpoint_dict"):
            extra_state = {**extra_state, **self.task.get_checkpoint_dict()}
        return save(self, filename, extra_state)

    @replaces(Trainer, "load_checkpoint")
    def load_checkpoint(load, self, filename, *args, **kwargs):
        extra_state = load(self, filename, *args, **kwargs)
        options = self.cfg.checkpoint
        resumed = not options.reset_dataloader and filename != options.finetune_from_model
        state = (extra_state or {}).get(type(self.task).__name__)
        if resumed and state and hasattr(self.task, "set_checkpoint_dict"):
            self.task.set_checkpoint_dict(state)
        return extra_state


def system_error(error: Optional[BaseException]) -> Optional[OSError]:
    """The first of the system's errors among an error and those that it came from, or None."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error


def check_there(path: Path) -> None:
    """Raise where there is no file."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path that you gave")


def checked(path, any_objects: bool = False, advise: bool = True) -> Dict:
    """Load a complete fairseq checkpoint without running code from it.

    The tensors are memory-mapped, so that this takes milliseconds for a checkpoint of any size.

    Args:
        any_objects: replace objects of any origin, not only fairseq's, by ``NotLoaded``; the model and its arguments
            must have none.
        advise: name a checkpoint to use instead in the error for a damaged file.

    Raises:
        CheckpointError: the file is missing, truncated or foreign, or has objects that could run code.
    """
    path = Path(path)
    check_there(path)
    try:
        state = safe_reader.read(path, zipfile.is_zipfile(path), any_objects)
    except Exception as error:  # the bytes of a foreign file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and any(phrase in str(error) for phrase in REFUSALS):
            way_out = "give another checkpoint"
            if safe_reader.refused_names(error) and not any_objects:
                way_out = f"nar-convert fairseq {path} --out FILE writes a copy without them"
            raise CheckpointError(
                f"{path} holds objects that could run code when loaded ({first_line(error)}): not loaded; {way_out}"
            ) from error
        advice = f"; {advice_for(path)}" if advise else ""
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint{advice}") from error
    for part in ("model", "args", "cfg", *([] if any_objects else ["task_state"])):
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
        if "Unsupported" in line or any(phrase in line for phrase in REFUSALS):
            return line.split("WeightsUnpickler error:")[-1].strip().split(". ")[0]
    return text.splitlines()[0] if text else type(error).__name__


def advice_for(path: Path) -> str:
    """Advice for a truncated or foreign file: the newest complete checkpoint in its folder, if all are of one model."""
    complete = whole_checkpoints(path)
    if not complete:
        return "no whole checkpoint stands beside it"
    newest = complete[0][0]
    if not path.match(RUN) or any(shapes != complete[0][1] for _, shapes in complete):
        return (
            f"whole checkpoints stand beside it ({newest.name}), but nothing tells which of them are of the same model"
        )
    return (
        f"the newest whole checkpoint is {newest}: give it instead (to go on with a training: --restore-file), or copy "
        "it "
        f"over {path.name}"
    )


def whole_checkpoints(path: Path) -> List[Tuple[Path, Dict]]:
    """The complete checkpoints of fairseq-train in the folder of ``path``, the newest first.

    Returns:
        (path, the shapes of the parameters by name) of each.
    """
    complete = []
    for other in sorted(path.parent.glob(RUN), key=os.path.getmtime, reverse=True):
        if other == path:
            continue
        try:
            model = checked(other, advise=False)["model"]
            complete.append((other, {name: tuple(value.shape) for name, value in model.items()}))
        except (CheckpointError, AttributeError):  # the model is no dictionary of tensors: not fairseq's
            continue
    return complete
