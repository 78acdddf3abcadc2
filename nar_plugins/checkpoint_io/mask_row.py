"""The row of ``<mask>`` in vocabulary tables, which checkpoints trained without ``<mask>`` lack."""

import torch
import torch.nn as nn
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor

from nar_plugins.modules.adaptive_softmax import refuse_other_classes

VOCABULARY_TABLES = ("embed_tokens", "output_projection")  # modules whose weight has one row per symbol


def with_mask_row(stored: Tensor, table: Tensor) -> Tensor:
    """A stored table (V or V - 1, D), with the model's last row appended if exactly one row is missing.

    Args:
        table: the model's table, (V, D).
    """
    lacks_mask = stored.size(0) + 1 == table.size(0)
    return torch.cat([stored, table.detach()[-1:].to(stored)]) if lacks_mask else stored


def accept_missing_mask_row(model: nn.Module) -> None:
    """Let every vocabulary table of ``model`` load a stored table without its last row, that of ``<mask>``.

    The missing row keeps its initial values. Any other difference in rows raises an error.
    """
    for name, module in model.named_modules():
        if name.split(".")[-1] in VOCABULARY_TABLES and hasattr(module, "weight"):
            module._register_load_state_dict_pre_hook(fill_mask_row, with_module=True)
        if isinstance(module, AdaptiveSoftmax):
            module._register_load_state_dict_pre_hook(refuse_other_classes, with_module=True)


def fill_mask_row(module, state_dict, prefix, *unused) -> None:
    """The load hook of a vocabulary table: append the row of ``<mask>`` if it is missing.

    Raises:
        ValueError: the tables differ in another way.
    """
    stored = state_dict.get(f"{prefix}weight")
    if stored is None or stored.dim() != 2:
        return
    filled = with_mask_row(stored, module.weight)
    if filled.size(0) != module.weight.size(0):
        raise ValueError(
            f"{prefix}weight has {stored.size(0)} rows in the checkpoint and {module.weight.size(0)} here: "
            "the dictionary is not the one that the checkpoint was trained with"
        )
    state_dict[f"{prefix}weight"] = filled
