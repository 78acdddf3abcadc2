"""Vocabulary tables that accept a checkpoint made before ``<mask>`` was in the dictionary."""

import torch
import torch.nn as nn
from fairseq.modules import AdaptiveSoftmax

ADAPTIVE = "models of --adaptive-softmax-cutoff are decoded by fairseq's own --task translation only"


def refuse_adaptive_softmax(model, what: str) -> None:
    """Raise for a model whose output layer gives features: an adaptive softmax makes probabilities of them, not logits.

    Args:
        what: the message's beginning, who cannot do what.
    """
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise ValueError(f"{what}: {ADAPTIVE}")


def accept_missing_mask_row(model: nn.Module) -> None:
    """Let every vocabulary table of ``model`` load a table that is short of exactly its last row, ``<mask>``.

    The row is filled with the one the model was built with. Another number of rows is an error that says so.
    """
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("embed_tokens", "output_projection") and hasattr(module, "weight"):
            module._register_load_state_dict_pre_hook(append_row, with_module=True)
        if isinstance(module, AdaptiveSoftmax):
            module._register_load_state_dict_pre_hook(refuse_other_classes, with_module=True)


def append_row(module, state_dict, prefix, *unused) -> None:
    """The hook: append the module's own last row to a stored table that has one row less.

    Raises:
        ValueError: the tables differ by more rows.
    """
    stored, here = state_dict.get(f"{prefix}weight"), module.weight.size(0)
    if stored is None or stored.dim() != 2 or stored.size(0) == here:
        return
    if stored.size(0) + 1 != here:
        raise ValueError(
            f"{prefix}weight has {stored.size(0)} rows in the checkpoint and {here} here: "
            "the dictionary is not the one that the checkpoint was trained with"
        )
    state_dict[f"{prefix}weight"] = torch.cat([stored, module.weight.detach()[-1:].to(stored)])


def refuse_other_classes(module, state_dict, prefix, *unused) -> None:
    """The hook of an adaptive softmax, whose last class would need a row for ``<mask>`` too.

    Raises:
        ValueError: the checkpoint's tables have other sizes.
    """
    for name, value in module.state_dict().items():
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.shape != value.shape:
            raise ValueError(
                f"{prefix}{name} is {tuple(stored.shape)} in the checkpoint and {tuple(value.shape)} here: {ADAPTIVE}"
            )
