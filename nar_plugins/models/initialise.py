"""How a model starts: from the release's distribution, or from a checkpoint's encoder or decoder."""

import logging
import re
from typing import Dict, Sequence

import torch
import torch.nn as nn
from fairseq import checkpoint_utils
from fairseq.modules import MultiheadAttention
from torch import Tensor

from nar_plugins import compat
from nar_plugins.checkpoint_io.teachers import check_symbols
from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.modules.length_head import LengthHead

logger = logging.getLogger(__name__)


def bert_init(module: nn.Module) -> None:
    """The release's initialisation: N(0, 0.02) for tables and linear layers, but Xavier for query, key and value.

    The release's fused query-key-value matrix is no ``Linear``, so its rule passes it by; fairseq's own initialisation
    of the three has the same distribution as the release's of the one. Rows of padding are drawn like the others.
    """
    if isinstance(module, (nn.Linear, nn.Embedding, LengthHead)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, MultiheadAttention):  # visited after its linear layers
        for projection in (module.q_proj, module.k_proj, module.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)


def start_from(part: nn.Module, side: str, path: str, task, own_parts: Sequence[str] = ()) -> None:
    """Copy one side of the checkpoint at ``path`` into a model's; every layer must fit.

    What exists on one side only (learned against sinusoidal positions, a length head, positional attention) keeps its
    start, and the log says which.

    Args:
        part: the model's encoder or decoder.
        side: "encoder" or "decoder".
        task: whose dictionaries the checkpoint's must be.
        own_parts: patterns of the parameters that an AR model does not have.

    Raises:
        ValueError: the checkpoint's layers have other names or sizes, or its dictionary (where it can be known) other
            symbols; the first that differs is named.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    symbols = (state.get("task_state") or {}).get("symbols", {}).get("source" if side == "encoder" else "target")
    if symbols is not None:
        check_same_symbols(symbols.split("\n"), part.dictionary.symbols, f"the dictionary of the {side}")
    else:
        check_symbols(state["cfg"], state["model"], task)
    own = part.state_dict()
    taken = fitting(own, {k[len(side) + 1 :]: v for k, v in state["model"].items() if k.startswith(f"{side}.")})
    for key, value in own.items():
        own_part = any(re.match(pattern, f"{side}.{key}") for pattern in own_parts)
        if key not in taken and key.startswith(("layers.", "embed_tokens.")) and not own_part:
            stored = state["model"].get(f"{side}.{key}")
            found = "absent" if stored is None else tuple(stored.shape)
            raise ValueError(f"--init-{side}-from {path}: {side}.{key} is {found}, this model has {tuple(value.shape)}")
    part.load_state_dict(taken, strict=False)
    logger.info(
        f"{side} starts from {path}; kept from the initialisation: {sorted(own.keys() - taken.keys()) or 'nothing'}"
    )


def fitting(own: Dict[str, Tensor], theirs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Of their tensors those that fit; a vocabulary made before ``<mask>`` was in it gets the model's own last row."""
    taken = {}
    for key, value in own.items():
        stored = theirs.get(key)
        if stored is None:
            continue
        if key in ("embed_tokens.weight", "output_projection.weight") and stored.size(0) + 1 == value.size(0):
            stored = torch.cat([stored, value[-1:]])
        if stored.shape == value.shape:
            taken[key] = stored
    return taken


def check_finetuned(path: str, model, dictionaries: Dict) -> None:
    """Raise unless ``--finetune-from-model`` was trained with these dictionaries and has this model's positions.

    fairseq itself would load other words without a sign, and of another table it says that the architectures differ.

    Args:
        dictionaries: the task's, by the side that a checkpoint keeps their symbols for.

    Raises:
        ValueError: the first symbol, or the table, that differs.
    """
    state = compat.checked(path)
    symbols = (state.get("task_state") or {}).get("symbols", {})
    for side in dictionaries.keys() & symbols.keys():
        check_same_symbols(symbols[side].split("\n"), dictionaries[side].symbols, f"the {side} dictionary")
    own = model.state_dict()
    for side, flag in (("encoder", "--max-source-positions"), ("decoder", "--max-target-positions")):
        key = f"{side}.embed_positions.weight"
        if key in own and key in state["model"] and state["model"][key].size(0) != own[key].size(0):
            more = own[key].size(0) - state["model"][key].size(0)
            raise ValueError(
                f"--finetune-from-model {path}: {key} has {state['model'][key].size(0)} rows, this model's "
                f"{own[key].size(0)}: give {abs(more)} {'fewer' if more > 0 else 'more'} {flag}"
            )
