"""Conversion of official BANG and ProphetNet checkpoints, and of BERT's vocabulary."""

from argparse import Namespace
from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor

from nar_plugins.checkpoint_io.convert import count_layers, save, side_flags, unfused
from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.data.dictionary import BertDictionary, load_dictionary
from nar_plugins.data.whole_file import check_output, write_whole
from nar_plugins.data.wordpiece import read_vocabulary
from nar_plugins.modules.relative_positions import BUCKETS, MAX_DISTANCE

SEPARATOR = "[X_SEP]"  # the symbol at index 2 in the release
UNUSED = "[unused1]"  # the symbol at index 2 in BERT's vocabulary


def convert_bert_vocabulary(vocabulary: Path, out: Path, official: bool = False) -> int:
    """Write a fairseq dictionary with the ids of a BERT ``vocab.txt``; returns the number of symbols.

    Args:
        official: rename index 2 as BANG's and ProphetNet's releases do.

    Raises:
        ValueError: the vocabulary is malformed, or lacks a symbol.
    """
    check_output(out, "--out", makes_folder=True)
    symbols = read_vocabulary(vocabulary)
    if out.exists() and out.samefile(vocabulary):
        raise ValueError(f"--out {out} is the vocabulary itself: give another file")
    if official and SEPARATOR not in symbols:
        if len(symbols) < 3 or symbols[2] != UNUSED:
            third = symbols[2] if len(symbols) > 2 else "nothing"
            raise ValueError(
                f"{vocabulary}, line 3 is '{third}', not {UNUSED}: --official is for BERT's own uncased vocabulary"
            )
        symbols[2] = SEPARATOR
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(f"{symbol} 1\n" for symbol in symbols))
    return len(symbols)


def convert_bang(checkpoint: Path, dictionary: Path, folder: Path, sees_bos: bool = True) -> Dict[str, Path]:
    """Convert an official BANG checkpoint, or a ProphetNet checkpoint of the same shapes, to a ``bang``.

    The parameters keep their names. ProphetNet has two mask embeddings; that of its first stream is kept, which is the
    last, because its streams are indexed from -1.

    Args:
        checkpoint: ``{"args", "model"}``; loading runs no code from it.
        dictionary: the dictionary that ``convert_bert_vocabulary`` makes.
        folder: ``checkpoint.pt`` and ``dict.txt`` are written there.
        sees_bos: False for a checkpoint that the release fine-tuned for NAR, whose masks do not see the start token.

    Returns:
        the two files, by name.

    Raises:
        ValueError: the checkpoint is of another kind or has other shapes, or the dictionary does not fit it.
    """
    check_output(folder / "checkpoint.pt", "--out", makes_folder=True)
    state = read_mapped(checkpoint)
    old = state.get("args") or Namespace()
    model = rename_bang({key: value.float() for key, value in state["model"].items()}, checkpoint)
    check_names(model, checkpoint)
    bert = load_dictionary(str(dictionary))
    if not isinstance(bert, BertDictionary):
        raise ValueError(
            f"{dictionary} does not start with [PAD]: make it of BERT's vocab.txt (nar-convert bert-vocab)"
        )
    vocabulary = model["encoder.embed_tokens.weight"].size(0)
    if len(bert) != vocabulary:
        raise ValueError(
            f"{dictionary} has {len(bert)} symbols, the checkpoint {vocabulary}: give the vocabulary that it was "
            "trained with"
        )
    flags = shape_flags(model, old, bert.pad(), checkpoint)
    for side in ("encoder", "decoder"):
        model.setdefault(f"{side}.version", torch.tensor([3.0]))
    folder.mkdir(parents=True, exist_ok=True)
    files = {"dictionary": folder / "dict.txt", "checkpoint": folder / "checkpoint.pt"}
    bert.save(str(files["dictionary"]))
    save(files["checkpoint"], model, "bang_base", flags, bert, criterion="bang_loss", nar_sees_bos=sees_bos)
    return files


def rename_bang(model: Dict[str, Tensor], checkpoint: Path) -> Dict[str, Tensor]:
    """The release's parameters, with separate query, key and value projections and one mask embedding."""
    renamed = {}
    for key, value in model.items():  # ngram_self_attn stays fused, as in a bang
        renamed.update(unfused(key, value, r".*\.(?:self_attn|encoder_attn)"))
    name = "decoder.ngram_input_embed.weight"
    if name not in renamed:
        raise ValueError(f"{checkpoint} is no BANG checkpoint: it has no {name}")
    if renamed[name].size(0) not in (1, 2):
        raise ValueError(
            f"{checkpoint}: {name} has {renamed[name].size(0)} rows; BANG's has 1, ProphetNet's of two streams 2"
        )
    renamed[name] = renamed[name][-1:].clone()
    return renamed


def expected_names(encoder_layers: int, decoder_layers: int) -> List[str]:
    """Every parameter of the release's model except the ``version`` buffers."""

    def weight_and_bias(*names):
        return [f"{name}.{part}" for name in names for part in ("weight", "bias")]

    def projections(name):
        return weight_and_bias(*(f"{name}.{letter}_proj" for letter in ("q", "k", "v", "out")))

    pointwise = weight_and_bias("self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
    encoder = [*projections("self_attn"), *pointwise]
    decoder = [
        "ngram_self_attn.in_proj_weight",
        "ngram_self_attn.in_proj_bias",
        *weight_and_bias("ngram_self_attn.relative_linear", "ngram_self_attn.out_proj", "encoder_attn_layer_norm"),
        *projections("encoder_attn"),
        *pointwise,
    ]
    names = [f"encoder.layers.{i}.{name}" for i in range(encoder_layers) for name in encoder]
    names += [f"decoder.layers.{i}.{name}" for i in range(decoder_layers) for name in decoder]
    for side in ("encoder", "decoder"):
        names += [
            f"{side}.embed_tokens.weight",
            f"{side}.embed_positions.weight",
            *weight_and_bias(f"{side}.emb_layer_norm"),
        ]
    return [*names, "decoder.ngram_input_embed.weight"]


def check_names(model: Dict[str, Tensor], checkpoint: Path) -> None:
    """Raise unless the parameters are those of the release's model; the first missing or additional one is named."""
    sides = ("encoder", "decoder")
    layers = [count_layers(model, side) if any(k.startswith(f"{side}.layers.") for k in model) else 0 for side in sides]
    expected = expected_names(*layers)
    absent = [name for name in expected if name not in model]
    extra = sorted(model.keys() - {*expected, "encoder.version", "decoder.version"})
    if absent or extra:
        what = f"has no {absent[0]}" if absent else f"has {extra[0]}, which a bang has not"
        raise ValueError(f"{checkpoint} is no BANG checkpoint: it {what}")


def shape_flags(model: Dict[str, Tensor], old: Namespace, pad: int, checkpoint: Path) -> List[str]:
    """Training flags for the sizes of a checkpoint.

    A position table has a row for every index up to pad and one per position. The decoder's has one more, because a
    mask has the position after that of the token before it.
    """
    for name, value in (("num_buckets", BUCKETS), ("relative_max_distance", MAX_DISTANCE)):
        if getattr(old, name, value) != value:
            raise ValueError(f"{checkpoint} was trained with {name} {getattr(old, name)}: a bang has {value}")
    heads = model["decoder.layers.0.ngram_self_attn.relative_linear.weight"].size(0) // BUCKETS
    flags = []
    for side, extra, positions in (("encoder", 1, "source"), ("decoder", 2, "target")):
        table = model[f"{side}.embed_positions.weight"].size(0) - pad - extra
        stored = getattr(old, f"max_{positions}_positions", None)
        if stored is not None and stored != table:
            raise ValueError(
                f"{checkpoint}: {side}.embed_positions has {table + pad + extra} rows, so {table} positions, but its "
                f"arguments say {stored}: it was not trained as they are"
            )
        flags += [f"--max-{positions}-positions={table}", *side_flags(model, old, side, heads)]
    return flags
