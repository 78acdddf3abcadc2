"""Initialisation of a model from another model's checkpoint.

``--init-encoder-from`` and ``--init-decoder-from`` copy one side, ``--finetune-from-model`` copies all parameters.
"""

import logging
import os
import re
from typing import Dict, NamedTuple, Optional, Sequence

import torch.nn as nn
from torch import Tensor

from nar_plugins.checkpoint_io.mask_row import VOCABULARY_TABLES, with_mask_row
from nar_plugins.checkpoint_io.read import read_mapped, read_upgraded, setting
from nar_plugins.checkpoint_io.symbols import check_stored_symbols, check_symbols_of_files
from nar_plugins.modules.pruned import KEPT, SIDES

logger = logging.getLogger(__name__)


class NewParameters(NamedTuple):
    """Parameters that an autoregressive Transformer does not have; a model lists them as ``new_parameters``."""

    pattern: str  # a regular expression that matches the start of their full names
    name: str  # their name in messages, such as "proposal heads"
    form: str  # the flag that determines which of them exist
    sizes: str  # the flags that determine their shapes


# -- the whole of a checkpoint ----------------------------------------------------------------------------------------


def starting_point(cfg) -> Optional[str]:
    """The checkpoint that a training continues from, or starts from; None: from nothing.

    fairseq's rules: its own last one is before ``--finetune-from-model``.

    Args:
        cfg: of the task, with ``save_dir``, ``restore_file`` and ``finetune_from_model``.
    """
    last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
    if cfg.restore_file != os.path.basename(last):
        return cfg.restore_file
    return last if os.path.exists(last) else cfg.finetune_from_model


def kept_sizes_of(path: str) -> Dict[str, object]:
    """The arguments that give a model the sizes of a pruned checkpoint (``modules/pruned.py``); of others none.

    Raises:
        CheckpointError: see ``read_mapped``.
    """
    state = read_mapped(path)
    kept = setting(state, "model", KEPT)
    return {KEPT: kept, **{f"{side}_layers": len(kept[side]) for side in SIDES}} if kept else {}


def check_finetuned(path: str, model: nn.Module, dictionaries: Dict) -> None:
    """Raise unless ``--finetune-from-model`` has these dictionaries and this model's number of positions.

    fairseq itself would load parameters of other dictionaries silently, and report other positions as another
    architecture.

    Args:
        dictionaries: the task's, by the sides under which checkpoints store symbols.

    Raises:
        ValueError: a dictionary or a position table differs; the first different symbol is named.
    """
    state = read_mapped(path)
    for side, dictionary in dictionaries.items():
        check_stored_symbols(state.get("task_state"), side, dictionary, f"the {side} dictionary")
    ours = model.state_dict()
    for side, flag in (("encoder", "--max-source-positions"), ("decoder", "--max-target-positions")):
        key = f"{side}.embed_positions.weight"
        if key in ours and key in state["model"] and state["model"][key].size(0) != ours[key].size(0):
            excess = ours[key].size(0) - state["model"][key].size(0)
            raise ValueError(
                f"--finetune-from-model {path}: {key} has {state['model'][key].size(0)} rows, this model's "
                f"{ours[key].size(0)}: give {abs(excess)} {'fewer' if excess > 0 else 'more'} {flag}"
            )


def start_new_parameters(model: nn.Module, state_dict: Dict[str, Tensor], name: str) -> None:
    """Let a model load an autoregressive checkpoint: new parameters that it does not have keep their initialisation.

    The model's ``upgrade_state_dict_named`` calls this before the checkpoint is loaded strictly.

    Args:
        state_dict: the checkpoint's parameters by name; missing new parameters are added.
        name: the prefix of the model's parameter names; empty for the model itself.

    Raises:
        ValueError: the checkpoint has some of the new parameters only, or other shapes.
    """
    prefix = f"{name}." if name else ""
    ours = model.state_dict()
    for new in model.new_parameters:
        fresh = {prefix + key: value for key, value in ours.items() if re.match(new.pattern, key)}
        stored = [key for key in state_dict if key.startswith(prefix) and re.match(new.pattern, key[len(prefix) :])]
        if fresh and not stored:
            first = next(iter(fresh))[len(prefix) :]
            logger.warning(f"the checkpoint has no {first} (an AR model's?): it starts from its initialisation")
            state_dict.update({key: value.clone() for key, value in fresh.items()})
            continue
        for key, value in fresh.items():
            if key not in state_dict:
                raise ValueError(
                    f"the checkpoint has {new.name}, but no {key[len(prefix) :]}: it is incomplete, or of another "
                    f"{new.form}"
                )
            if state_dict[key].shape != value.shape:
                stored_shape, shape = tuple(state_dict[key].shape), tuple(value.shape)
                raise ValueError(
                    f"{key[len(prefix) :]} is {stored_shape} in the checkpoint and {shape} here: give the "
                    f"{new.sizes} that it was trained with"
                )


def check_tables(model: nn.Module, state_dict: Dict[str, Tensor], name: str) -> None:
    """Raise for a checkpoint whose vocabulary or number of positions differs from the model's.

    A vocabulary without its last row, ``<mask>``, is accepted. It is called like ``start_new_parameters``.

    Args:
        model: a model with learned positions on both sides.
        state_dict, name: see ``start_new_parameters``.
    """
    prefix = f"{name}." if name else ""
    for side, flag in (("encoder", "source"), ("decoder", "target")):
        for part in ("embed_tokens", "embed_positions"):
            key = f"{side}.{part}.weight"
            stored, ours = state_dict.get(prefix + key), model.get_parameter(key)
            if stored is None or stored.shape == ours.shape:
                continue
            stored_size, size = len(stored), len(ours)
            if stored.size(1) != ours.size(1):
                raise ValueError(
                    f"{key} is {stored.size(1)} wide in the checkpoint and {ours.size(1)} here: "
                    "give the --arch or --encoder-embed-dim that it was trained with"
                )
            if part == "embed_tokens" and stored_size + 1 != size:
                raise ValueError(
                    f"the vocabulary has {stored_size} symbols in the checkpoint and {size} here ({key}): "
                    "binarise the data with its dictionary (fairseq-preprocess --srcdict)"
                )
            if part == "embed_positions":
                positions = getattr(model.args, f"max_{flag}_positions")
                stored_positions = positions + stored_size - size
                raise ValueError(
                    f"the {side} has {stored_positions} positions in the checkpoint and {positions} here: "
                    f"give --max-{flag}-positions {stored_positions}"
                )


# -- one side of a checkpoint -----------------------------------------------------------------------------------------


def start_from(part: nn.Module, side: str, path: str, task, new_parameters: Sequence[NewParameters] = ()) -> None:
    """Copy the encoder or decoder of the checkpoint at ``path`` into a model's; every layer must fit.

    Parameters that only one of the two models has (learned or sinusoidal positions, a length head, positional
    attention) keep their initialisation; the log lists them.

    Args:
        part: the model's encoder or decoder.
        side: "encoder" or "decoder".
        task: the checkpoint must have its dictionaries.
        new_parameters: those of the model.

    Raises:
        ValueError: the checkpoint's layers have other names or sizes, or its dictionary, if it can be determined, has
            other symbols; the first difference is named.
    """
    state = read_upgraded(path)
    text = "source" if side == "encoder" else "target"
    if not check_stored_symbols(state.get("task_state"), text, part.dictionary, f"the dictionary of the {side}"):
        check_symbols_of_files(state["cfg"], state["model"], task)
    ours = part.state_dict()
    theirs = {k[len(side) + 1 :]: v for k, v in state["model"].items() if k.startswith(f"{side}.")}
    taken = fitting(ours, theirs)
    for key, value in ours.items():
        is_new = any(re.match(new.pattern, f"{side}.{key}") for new in new_parameters)
        if key not in taken and key.startswith(("layers.", "embed_tokens.")) and not is_new:
            stored = tuple(theirs[key].shape) if key in theirs else "absent"
            raise ValueError(
                f"--init-{side}-from {path}: {side}.{key} is {stored}, this model has {tuple(value.shape)}"
            )
    part.load_state_dict(taken, strict=False)
    logger.info(
        f"{side} starts from {path}; kept from the initialisation: {sorted(ours.keys() - taken.keys()) or 'nothing'}"
    )


def fitting(ours: Dict[str, Tensor], theirs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The stored tensors that fit; a vocabulary table without ``<mask>`` gets the model's last row."""
    taken = {}
    for key, value in ours.items():
        stored = theirs.get(key)
        if stored is not None and key in [f"{table}.weight" for table in VOCABULARY_TABLES]:
            stored = with_mask_row(stored, value)
        if stored is not None and stored.shape == value.shape:
            taken[key] = stored
    return taken
