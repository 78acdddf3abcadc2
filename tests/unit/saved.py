"""Checkpoints of tiny models with random weights, and a small binarised corpus over their dictionary, for fairseq's commands."""
from pathlib import Path

import torch

from conftest import preprocess, write_pairs
from tiny import arguments, dictionary, model

CRITERIONS = {"blockwise": "blockwise_loss", "bang": "bang_loss", "transformer": "cross_entropy"}
SIZE = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in (
    "embed-dim=16", "ffn-embed-dim=16", "attention-heads=2", "layers=1",
)]  # fmt: skip


def save(path: Path, arch: str, *flags: str, seed: int = 1, scale: float = 4.0, words: int = 20) -> Path:
    """A checkpoint of ``arch`` with one layer of width 16; its weights are large, so that it is sure of various things."""
    flags = (*SIZE, "--share-all-embeddings", *flags)
    given = {"arch": arch, "criterion": CRITERIONS.get(arch.split("_")[0], "nar_loss")}
    made, _ = model(*flags, words=words, seed=seed, **given)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(scale)
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]
    torch.save({"args": arguments(*flags, **given), "cfg": None, "model": made.state_dict(), "optimizer_history": history,
                "task_state": {}, "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}}, path)  # fmt: skip
    return path


def corpus(folder: Path, pairs, words: int = 20, **options) -> Path:
    """The pairs as split ``test`` over the dictionary of ``tiny``, binarised; what fairseq-generate takes."""
    write_pairs(folder, pairs, "test")
    dictionary(words).save(str(folder / "dict.txt"))
    return preprocess(folder, folder / "bin", srcdict=folder / "dict.txt", **options)
