"""Official BANG and ProphetNet checkpoints, and BERT's vocabulary, as fairseq-train and fairseq-generate of this
package read them.
"""

from argparse import Namespace
from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor

from nar_plugins.checkpoint_io.convert import count_layers, save, side_flags, unfused
from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.data.dictionary import BertDictionary, load_dictionary
from nar_plugins.data.wordpiece import read_vocabulary
from nar_plugins.modules.relative_positions import BUCKETS, MAX_DISTANCE

SEPARATOR = "[X_SEP]"  # what the release calls the symbol at index 2
UNUSED = "[unused1]"  # what BERT calls it


def convert_bert_vocabulary(vocabulary: Path, out: Path, official: bool = False) -> int:
    """Write a fairseq dictionary with the ids of a BERT ``vocab.txt``; the number of its symbols.

    Args:
        official: rename index 2 as BANG's and ProphetNet's releases do.

    Raises:
        ValueError: the vocabulary is broken, or lacks a symbol.
    """
    symbols = read_vocabulary(vocabulary)
    if out.exists() and out.samefile(vocabulary):
        raise ValueError(f"--out {out} is the vocabulary itself: give another file")
    if official and SEPARATOR not in symbols:
        if len(symbols) < 3 or symbols[2] != UNUSED:
            found = symbols[2] if len(symbols) > 2 else "nothing"
            raise ValueError(
                f"{vocabulary}, line 3 is '{found}', not {UNUSED}: --official is for BERT's own uncased vocabulary"
            )
        symbols[2] = SEPARATOR
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")
    return len(symbols)


def convert_bang(checkpoint: Path, dictionary: Path, folder: Path, sees_bos: bool = True) -> Dict[str, Path]:
    """An official BANG checkpoint, or a ProphetNet one of the same shapes, as a ``bang``.

    Parameter names are the release's own. Of ProphetNet's two mask embeddings the one of its first stream is kept: the
    last, because its streams count from -1.

    Args:
        checkpoint: ``{"args", "model"}``; it is loaded without running code from it.
        dictionary: BERT's, as ``convert_bert_vocabulary`` makes it.
        folder: receives ``checkpoint.pt`` and ``dict.txt``.
        sees_bos: False for a checkpoint that the release has fine-tuned for NAR: its masks do not see the start token.

    Returns:
        the two files, by name.

    Raises:
        ValueError: the checkpoint is of another kind or has other shapes, or the dictionary does not fit it.
    """
    state = read_mapped(checkpoint)
    old = state.get("args") or Namespace()
    model = rename_bang({key: value.float() for key, value in state["model"].items()}, checkpoint)
    check_names(model, checkpoint)
    words = load_dictionary(str(dictionary))
    if not isinstance(words, BertDictionary):
        raise ValueError(
            f"{dictionary} does not start with [PAD]: make it of BERT's vocab.txt (nar-convert bert-vocab)"
        )
    rows = model["encoder.embed_tokens.weight"].size(0)
    if len(words) != rows:
        raise ValueError(
            f"{dictionary} has {len(words)} symbols, the checkpoint {rows}: give the vocabulary that it was trained "
            "with"
        )
    flags = shape_flags(model, old, words.pad(), checkpoint)
    for side in ("encoder", "decoder"):
        model.setdefault(f"{side}.version", torch.tensor([3.0]))
    folder.mkdir(parents=True, exist_ok=True)
    files = {"dictionary": folder / "dict.txt", "checkpoint": folder / "checkpoint.pt"}
    words.save(str(files["dictionary"]))
    save(files["checkpoint"], model, "bang_base", flags, words, criterion="bang_loss", nar_sees_bos=sees_bos)
    return files


def rename_bang(model: Dict[str, Tensor], checkpoint: Path) -> Dict[str, Tensor]:
    """The release's parameters, with query, key and value apart where an older fairseq has fused them, and one mask
    embedding.
    """
    renamed = {}
    for key, value in model.items():  # the decoder's own attention, ngram_self_attn, is fused in the release as well
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
    """Every parameter of the release's model but the ``version`` buffers."""

    def both(*names):
        return [f"{name}.{part}" for name in names for part in ("weight", "bias")]

    def projections(name):
        return both(*(f"{name}.{letter}_proj" for letter in ("q", "k", "v", "out")))

    pointwise = both("self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
    encoder = [*projections("self_attn"), *pointwise]
    decoder = [
        "ngram_self_attn.in_proj_weight",
        "ngram_self_attn.in_proj_bias",
        *both("ngram_self_attn.relative_linear", "ngram_self_attn.out_proj", "encoder_attn_layer_norm"),
        *projections("encoder_attn"),
        *pointwise,
    ]
    names = [f"encoder.layers.{i}.{name}" for i in range(encoder_layers) for name in encoder]
    names += [f"decoder.layers.{i}.{name}" for i in range(decoder_layers) for name in decoder]
    for side in ("encoder", "decoder"):
        names += [f"{side}.embed_tokens.weight", f"{side}.embed_positions.weight", *both(f"{side}.emb_layer_norm")]
    return [*names, "decoder.ngram_input_embed.weight"]


def check_names(model: Dict[str, Tensor], checkpoint: Path) -> None:
    """Raise unless the parameters are those of the release's model, naming the first that is absent or one too many."""
    sides = ("encoder", "decoder")
    layers = [count_layers(model, side) if any(k.startswith(f"{side}.layers.") for k in model) else 0 for side in sides]
    expected = expected_names(*layers)
    absent = [name for name in expected if name not in model]
    more = sorted(model.keys() - {*expected, "encoder.version", "decoder.version"})
    if absent or more:
        what = f"has no {absent[0]}" if absent else f"has {more[0]}, which a bang has not"
        raise ValueError(f"{checkpoint} is no BANG checkpoint: it {what}")


def shape_flags(model: Dict[str, Tensor], old: Namespace, pad: int, checkpoint: Path) -> List[str]:
    """Training flags for the sizes of a checkpoint.

    The position tables have rows for pad and what is before it, the positions, and the decoder's one more, because a
    mask stands one position further right than the token before it.
    """
    for name, value in (("num_buckets", BUCKETS), ("relative_max_distance", MAX_DISTANCE)):
        if getattr(old, name, value) != value:
            raise ValueError(f"{checkpoint} was trained with {name} {getattr(old, name)}: a bang has {value}")
    heads = model["decoder.layers.0.ngram_self_attn.relative_linear.weight"].size(0) // BUCKETS
    flags = []
    for side, extra, positions in (("encoder", 1, "source"), ("decoder", 2, "target")):
        table = model[f"{side}.embed_positions.weight"].size(0) - pad - extra
        said = getattr(old, f"max_{positions}_positions", None)
        if said is not None and said != table:
            raise ValueError(
                f"{checkpoint}: {side}.embed_positions has {table + pad + extra} rows, so {table} positions, but its "
                f"arguments say {said}: it was not trained as they are"
            )
        flags += [f"--max-{positions}-positions={table}", *side_flags(model, old, side, heads)]
    return flags
