"""Checkpoints of official releases, and of any trainer of fairseq's, into ones that load safely here."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import Tensor

from nar_plugins import compat
from nar_plugins.compat import safe_reader
from nar_plugins.data.dictionary import MASK
from nar_plugins.data.lines import read_lines


def convert_mask_predict(checkpoint: Path, dictionary: Path, folder: Path, heads: int = 0) -> Dict[str, Path]:
    """A checkpoint and dictionary of facebookresearch/Mask-Predict as a ``cmlm`` in the official form.

    The release keeps ``<mask>`` at index 4, before the words, and leaves it out of its dictionary files. The new
    dictionary file names it first, so every id stays what it was.

    Args:
        checkpoint: the release's, ``{"args", "model", ...}``; it is loaded without running code from it.
        dictionary: the release's ``dict.*.txt``.
        folder: receives ``checkpoint.pt`` and ``dict.txt``.
        heads: attention heads; 0 takes them from the checkpoint's arguments, or the release's width / 64.

    Returns:
        the two files, by name.

    Raises:
        ValueError: the checkpoint is not of that release, or the dictionary does not fit it.
    """
    state = load(checkpoint)
    model, old = state["model"], state.get("args") or Namespace()
    if "encoder.embed_lengths.weight" not in model:
        raise ValueError(f"{checkpoint} is no Mask-Predict checkpoint: it has no encoder.embed_lengths.weight")
    symbols = read_symbols(dictionary)
    words, dim = model["encoder.embed_tokens.weight"].shape
    if len(symbols) + 4 != words:
        raise ValueError(
            f"{dictionary} makes {len(symbols) + 4} symbols, the checkpoint has {words}: give its own dictionary"
        )

    shared = torch.equal(model["encoder.embed_tokens.weight"], model["decoder.embed_tokens.weight"])
    lengths = model["encoder.embed_lengths.weight"].size(0)
    flags = [f"--max-source-positions={model['encoder.embed_positions.weight'].size(0) - 2}"]
    # The release's classes are the lengths 0..P-1 for P positions; ours are 0..max, so the last position is never used.
    flags += [f"--max-target-positions={lengths - 1}"]
    flags += ["--share-all-embeddings" if shared else "--share-decoder-input-output-embed"]
    for side in ("encoder", "decoder"):
        flags += [
            f"--{side}-layers={count_layers(model, side)}",
            f"--{side}-embed-dim={dim}",
            f"--{side}-ffn-embed-dim={model[f'{side}.layers.0.fc1.weight'].size(0)}",
            f"--{side}-attention-heads={heads or getattr(old, f'{side}_attention_heads', None) or max(1, dim // 64)}",
        ]

    folder.mkdir(parents=True, exist_ok=True)
    files = {"dictionary": folder / "dict.txt", "checkpoint": folder / "checkpoint.pt"}
    files["dictionary"].write_text("".join(f"{symbol} {count}\n" for symbol, count in symbols), encoding="utf-8")
    new = Dictionary.load(str(files["dictionary"]))
    save(files["checkpoint"], rename_mask_predict(model, lengths), "cmlm_wmt_en_de", flags, new)
    return files


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
    state = compat.checked(checkpoint, anything=True)
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
    part = out.with_name(f"{out.name}.tmp")
    torch.save(known, part)
    os.replace(part, out)
    return [f"{name} ({', '.join(objects)})" for name, objects in left_out.items()]


def known_entries(entries: Dict) -> Tuple[Dict, Dict]:
    """The entries that hold plain data only; and of the others the names, with the objects in them."""
    found = {name: sorted(set(safe_reader.not_loaded((name, value)))) for name, value in entries.items()}
    return {name: entries[name] for name in entries if not found[name]}, {name: o for name, o in found.items() if o}


def unknown_history() -> Dict:
    """The last entry of an optimizer's history of which nothing is known."""
    return {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}


def load(checkpoint: Path) -> Dict:
    """The checkpoint, safely; raises a one-line error otherwise."""
    compat.check_checkpoint(checkpoint)
    return compat.safe_load(checkpoint)


def read_symbols(dictionary: Path) -> List[tuple]:
    """(symbol, count) of every line, ``<mask>`` first."""
    if not dictionary.is_file():
        raise ValueError(f"no dictionary {dictionary}: give the release's dict.*.txt with --dict")
    pairs, first_at = [], {}
    for number, line in enumerate(read_lines(dictionary), 1):
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdigit():
            raise ValueError(f"{dictionary}, line {number}: '{line}' is not 'symbol count'")
        if first_at.setdefault(symbol, number) != number:
            raise ValueError(f"{dictionary}, line {number}: '{symbol}' is in line {first_at[symbol]} already")
        pairs.append((symbol, count))
    return [(MASK, "0"), *(pair for pair in pairs if pair[0] != MASK)]


def count_layers(model: Dict, side: str) -> int:
    """How many layers one side has."""
    return 1 + max(int(key.split(".")[2]) for key in model if key.startswith(f"{side}.layers."))


RELEASE_NAMES = (
    (r"^encoder\.embed_lengths\.weight$", "encoder.length_head.weight"),
    (r"^(encoder\.layers\.\d+)\.layer_norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"^(encoder\.layers\.\d+)\.layer_norms\.1\.", r"\1.final_layer_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def unfused(key: str, value: Tensor, attentions: str = ".*") -> Dict[str, Tensor]:
    """A parameter under its name, or query, key and value apart where an older fairseq fused them into ``in_proj``.

    Args:
        attentions: pattern of the modules to which that applies.
    """
    fused = re.match(rf"({attentions})\.in_proj_(weight|bias)$", key)
    if not fused:
        return {key: value}
    return {f"{fused[1]}.{letter}_proj.{fused[2]}": part.clone() for letter, part in zip("qkv", value.chunk(3))}


def rename_mask_predict(model: Dict[str, Tensor], lengths: int) -> Dict[str, Tensor]:
    """The release's parameters under fairseq's names; query, key and value in parts."""
    renamed = {}
    for key, value in model.items():
        if key.endswith(".version"):
            continue
        for pattern, name in RELEASE_NAMES:
            key = re.sub(pattern, name, key)
        renamed.update(unfused(key, value))
    renamed["decoder.embed_positions.weight"] = renamed["decoder.embed_positions.weight"][: lengths + 1].clone()
    renamed["decoder.output_projection.weight"] = renamed["decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        renamed[f"{side}.version"] = torch.tensor([3.0])
    return renamed


def save(
    path: Path,
    model: Dict[str, Tensor],
    arch: str,
    flags: List[str],
    dictionary: Dictionary,
    criterion: str = "nar_loss",
    **switches: bool,
) -> None:
    """Write what fairseq's trainer would have written after no update, with these training flags.

    Args:
        switches: arguments of the model that are set whatever the flags' defaults are.
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
    symbols = "\n".join(dictionary.symbols)
    history = {
        "criterion_name": CRITERION_REGISTRY[criterion].__name__,
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    torch.save(
        {
            "args": None,
            "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
            "model": model,
            "criterion": None,
            "optimizer_history": [history],
            "task_state": {"symbols": {"source": symbols, "target": symbols}},
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}, "val_loss": None},
            "last_optimizer_state": None,
        },
        path,
    )
