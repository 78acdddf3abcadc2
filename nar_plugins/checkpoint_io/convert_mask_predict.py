"""Conversion of the Mask-Predict release's checkpoints."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Dict, List

import torch
from fairseq.data import Dictionary
from torch import Tensor

from nar_plugins.checkpoint_io.convert import save, side_flags, unfused
from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.data.dictionary import MASK
from nar_plugins.data.lines import read_lines
from nar_plugins.data.whole_file import check_output, write_whole


def convert_mask_predict(checkpoint: Path, dictionary: Path, folder: Path, heads: int = 0) -> Dict[str, Path]:
    """Convert a checkpoint and dictionary of facebookresearch/Mask-Predict to a ``cmlm``.

    The release has ``<mask>`` at index 4, before the words, but not in its dictionary files. The new dictionary file
    lists it first, so that all ids stay the same.

    Args:
        checkpoint: the release's ``{"args", "model", ...}``; loading runs no code from it.
        dictionary: the release's ``dict.*.txt``.
        folder: ``checkpoint.pt`` and ``dict.txt`` are written there.
        heads: attention heads; 0: those in the checkpoint's arguments, or width / 64 as in the release.

    Returns:
        the two files, by name.

    Raises:
        ValueError: the checkpoint is not of that release, or the dictionary does not fit it.
    """
    check_output(folder / "checkpoint.pt", "--out", makes_folder=True)
    state = read_mapped(checkpoint)
    model, old = state["model"], state.get("args") or Namespace()
    if "encoder.embed_lengths.weight" not in model:
        raise ValueError(f"{checkpoint} is no Mask-Predict checkpoint: it has no encoder.embed_lengths.weight")
    symbols = read_symbols(dictionary)
    vocabulary, dim = model["encoder.embed_tokens.weight"].shape
    if len(symbols) + 4 != vocabulary:
        raise ValueError(
            f"{dictionary} makes {len(symbols) + 4} symbols, the checkpoint has {vocabulary}: give its own dictionary"
        )

    shared = torch.equal(model["encoder.embed_tokens.weight"], model["decoder.embed_tokens.weight"])
    lengths = model["encoder.embed_lengths.weight"].size(0)
    flags = [f"--max-source-positions={model['encoder.embed_positions.weight'].size(0) - 2}"]
    # The release has length classes 0..P-1 for P positions, a cmlm 0..max: the last position is never used.
    flags += [f"--max-target-positions={lengths - 1}"]
    flags += ["--share-all-embeddings" if shared else "--share-decoder-input-output-embed"]
    if heads:
        old = Namespace()
    for side in ("encoder", "decoder"):
        flags += side_flags(model, old, side, heads or max(1, dim // 64))

    folder.mkdir(parents=True, exist_ok=True)
    files = {"dictionary": folder / "dict.txt", "checkpoint": folder / "checkpoint.pt"}
    write_whole(files["dictionary"], "".join(f"{symbol} {count}\n" for symbol, count in symbols))
    new = Dictionary.load(str(files["dictionary"]))
    save(files["checkpoint"], rename_mask_predict(model, lengths), "cmlm_wmt_en_de", flags, new)
    return files


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


RELEASE_NAMES = (
    (r"^encoder\.embed_lengths\.weight$", "encoder.length_head.weight"),
    (r"^(encoder\.layers\.\d+)\.layer_norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"^(encoder\.layers\.\d+)\.layer_norms\.1\.", r"\1.final_layer_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def rename_mask_predict(model: Dict[str, Tensor], lengths: int) -> Dict[str, Tensor]:
    """The release's parameters under fairseq's names, with separate query, key and value projections."""
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
