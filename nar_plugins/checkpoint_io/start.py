"""A model that starts from another's checkpoint: ``--init-encoder-from`` and ``--init-decoder-from`` copy one side,
``--finetune-from-model`` all of it."""

import logging
import re
from typing import Dict, NamedTuple, Sequence

import torch.nn as nn
from torch import Tensor

from nar_plugins.checkpoint_io.mask_row import VOCABULARY_TABLES, with_mask_row
from nar_plugins.checkpoint_io.read import read_mapped, read_upgraded
from nar_plugins.checkpoint_io.symbols import check_stored_symbols, check_symbols_of_files

logger = logging.getLogger(__name__)


class NewParameters(NamedTuple):
    """Parameters that a model has and an autoregressive Transformer has not; a model lists its own as
    ``new_parameters``.
    """

    pattern: str  # a regular expression for the beginning of their full names
    name: str  # what messages call them, such as "proposal heads"
    form: str  # the flag that decides which of them there are
    sizes: str  # the flags that decide their shapes


# -- the whole of a checkpoint ----------------------------------------------------------------------------------------


def check_finetuned(path: str, model: nn.Module, dictionaries: Dict) -> None:
    """Raise unless ``--finetune-from-model`` was trained with these dictionaries and has this model's positions.

    fairseq itself would load other words without a sign, and of another table it says that the architectures differ.

    Args:
        dictionaries: the task's, by the side that a checkpoint keeps their symbols for.

    Raises:
        ValueError: the first symbol, or the table, that differs.
    """
    state = read_mapped(path)
    for side, dictionary in dictionaries.items():
        check_stored_symbols(state.get("task_state"), side, dictionary, f"the {side} dictionary")
    ours = model.state_dict()
    for side, flag in (("encoder", "--max-source-positions"), ("decoder", "--max-target-positions")):
        key = f"{side}.embed_positions.weight"
        if key in ours and key in state["model"] and state["model"][key].size(0) != ours[key].size(0):
            more = ours[key].size(0) - state["model"][key].size(0)
            raise ValueError(
                f"--finetune-from-model {path}: {key} has {state['model'][key].size(0)} rows, this model's "
                f"{ours[key].size(0)}: give {abs(more)} {'fewer' if more > 0 else 'more'} {flag}"
            )


def start_new_parameters(model: nn.Module, state_dict: Dict[str, Tensor], name: str) -> None:
    """Let a model load an autoregressive checkpoint: new parameters that it wholly lacks start afresh.

    Called in the model's ``upgrade_state_dict_named``, before the checkpoint is loaded strictly.

    Args:
        state_dict: the checkpoint's parameters by name; what it lacks is added.
        name: of the model inside of what is loaded; empty for the model itself.

    Raises:
        ValueError: the checkpoint has a part of them, or some of other shapes.
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
                there, here = tuple(state_dict[key].shape), tuple(value.shape)
                raise ValueError(
                    f"{key[len(prefix) :]} is {there} in the checkpoint and {here} here: give the {new.sizes} that it "
                    "was trained with"
                )


def check_tables(model: nn.Module, state_dict: Dict[str, Tensor], name: str) -> None:
    """Raise, saying how they differ, for a checkpoint whose vocabulary or positions are not the model's.

    A vocabulary that lacks only its last row, ``<mask>``, is accepted. Called as ``start_new_parameters``.

    Args:
        model: its tables of positions are learned, on both sides.
        state_dict, name: see ``start_new_parameters``.
    """
    prefix = f"{name}." if name else ""
    for side, flag in (("encoder", "source"), ("decoder", "target")):
        for part in ("embed_tokens", "embed_positions"):
            key = f"{side}.{part}.weight"
            stored, ours = state_dict.get(prefix + key), model.get_parameter(key)
            if stored is None or stored.shape == ours.shape:
                continue
            there, here = len(stored), len(ours)
            if stored.size(1) != ours.size(1):
                raise ValueError(
                    f"{key} is {stored.size(1)} wide in the checkpoint and {ours.size(1)} here: "
                    "give the --arch or --encoder-embed-dim that it was trained with"
                )
            if part == "embed_tokens" and there + 1 != here:
                raise ValueError(
                    f"the vocabulary has {there} symbols in the checkpoint and {here} here ({key}): "
                    "binarise the data with its dictionary (fairseq-preprocess --srcdict)"
                )
            if part == "embed_positions":
                most = getattr(model.args, f"max_{flag}_positions")
                raise ValueError(
                    f"the {side} has {most + there - here} positions in the checkpoint and {most} here: "
                    f"give --max-{flag}-positions {most + there - here}"
                )


# -- one side of a checkpoint -----------------------------------------------------------------------------------------


def start_from(part: nn.Module, side: str, path: str, task, new_parameters: Sequence[NewParameters] = ()) -> None:
    """Copy one side of the checkpoint at ``path`` into a model's; every layer must fit.

    What exists on one side only (learned against sinusoidal positions, a length head, positional attention) keeps its
    start, and the log says which.

    Args:
        part: the model's encoder or decoder.
        side: "encoder" or "decoder".
        task: whose dictionaries the checkpoint's must be.
        new_parameters: the model's.

    Raises:
        ValueError: the checkpoint's layers have other names or sizes, or its dictionary (where it can be known) other
            symbols; the first that differs is named.
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
            found = tuple(theirs[key].shape) if key in theirs else "absent"
            raise ValueError(f"--init-{side}-from {path}: {side}.{key} is {found}, this model has {tuple(value.shape)}")
    part.load_state_dict(taken, strict=False)
    logger.info(
        f"{side} starts from {path}; kept from the initialisation: {sorted(ours.keys() - taken.keys()) or 'nothing'}"
    )


def fitting(ours: Dict[str, Tensor], theirs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Of their tensors those that fit; a vocabulary made before ``<mask>`` was in it gets the model's own last row."""
    taken = {}
    for key, value in ours.items():
        stored = theirs.get(key)
        if stored is not None and key in [f"{table}.weight" for table in VOCABULARY_TABLES]:
            stored = with_mask_row(stored, value)
        if stored is not None and stored.shape == value.shape:
            taken[key] = stored
    return taken
