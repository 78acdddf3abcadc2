"""Shared by the converters of releases: sizes as training flags, parameter names, and writing the checkpoint."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Dict, List

import torch
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import Tensor

from nar_plugins.checkpoint_io.symbols import stored_symbols
from nar_plugins.data.whole_file import written_whole


def count_layers(model: Dict, side: str) -> int:
    """The number of layers of the encoder or decoder."""
    return 1 + max(int(key.split(".")[2]) for key in model if key.startswith(f"{side}.layers."))


def side_flags(model: Dict[str, Tensor], old: Namespace, side: str, heads: int) -> List[str]:
    """Training flags for the sizes of the encoder or decoder in a checkpoint.

    Args:
        model: its parameters; those with sizes have fairseq's names.
        old: its arguments.
        heads: attention heads, if they are not in the arguments.
    """
    return [
        f"--{side}-layers={count_layers(model, side)}",
        f"--{side}-embed-dim={model['encoder.embed_tokens.weight'].size(1)}",
        f"--{side}-ffn-embed-dim={model[f'{side}.layers.0.fc1.weight'].size(0)}",
        f"--{side}-attention-heads={getattr(old, f'{side}_attention_heads', None) or heads}",
    ]


def unfused(key: str, value: Tensor, attentions: str = ".*") -> Dict[str, Tensor]:
    """A parameter under its name; an ``in_proj`` of older fairseq is split into query, key and value.

    Args:
        attentions: pattern of the names of the modules whose ``in_proj`` is split.
    """
    fused = re.match(rf"({attentions})\.in_proj_(weight|bias)$", key)
    if not fused:
        return {key: value}
    return {f"{fused[1]}.{letter}_proj.{fused[2]}": part.clone() for letter, part in zip("qkv", value.chunk(3))}


def save(
    path: Path,
    model: Dict[str, Tensor],
    arch: str,
    flags: List[str],
    dictionary: Dictionary,
    criterion: str = "nar_loss",
    **switches: bool,
) -> None:
    """Write the checkpoint that fairseq's trainer would write before the first update, with these training flags.

    Args:
        switches: arguments of the model that override the flags.
    """
    parser = options.get_training_parser("nar_translation")
    given = [
        "data",
        "--task",
        "nar_translation",
        "--criterion",
        criterion,
        "--arch",
        arch,
        "--optimizer",
        "adam",
        *flags,
    ]
    args = options.parse_args_and_arch(parser, input_args=given)
    vars(args).update(switches)
    cfg = convert_namespace_to_omegaconf(args)
    history = {
        "criterion_name": CRITERION_REGISTRY[criterion].__name__,
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": stored_symbols({"source": dictionary, "target": dictionary}),
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}, "val_loss": None},
        "last_optimizer_state": None,
    }
    with written_whole(path) as temporary:  # the tensors may be memory-mapped from the file at this path
        torch.save(state, temporary)
