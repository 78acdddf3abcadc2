"""The copy of a model that is made ready for decoding (``prepare.py``): other modules around the same parameters."""

import copy
from typing import Dict, Set

import torch.nn as nn
from fairseq.data import Dictionary
from fairseq.modules import LearnedPositionalEmbedding
from torch import Tensor

from nar_plugins.modules.fast.fused import fuse
from nar_plugins.modules.fast.linear import PreparedLinear
from nar_plugins.modules.fast.table import HalfTable, PreparedEmbedding, PreparedPositions


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a model's modules around the same parameters and buffers, with ``PreparedLinear`` for ``nn.Linear``,
    ``PreparedEmbedding`` for the tables of words and ``PreparedPositions`` for those of learned positions.

    A linear layer whose weight is no parameter (weight normalisation, pruning: it is computed in every call) is copied
    as it is.
    """
    memo: Dict[int, object] = {}
    words = {id(module.embed_tokens) for module in model.modules() if hasattr(module, "embed_tokens")}

    def share(*parts) -> None:
        memo.update((id(part), part) for part in parts)

    for module in model.modules():
        share(module._parameters, module._buffers, *hooks(module).values())
        share(*(value for value in vars(module).values() if isinstance(value, (Tensor, Dictionary))))
        if replaceable(module) and (type(module) is not nn.Embedding or id(module) in words):
            memo[id(module)] = replacement(module)
            vars(memo[id(module)]).update(hooks(module))
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # of any kind: a model may hold anything
        raise ValueError(f"a {type(model).__name__} cannot be copied for decoding: {error}") from error
    for module in list(copied.modules()):
        for name, parameters in getattr(module, "products", {}).items():
            setattr(module, name, PreparedLinear(module._parameters, *parameters, owns=False))
        for name, parameter in getattr(module, "tables", {}).items():
            setattr(module, name, HalfTable(module._parameters, parameter))
    fuse(copied)
    return copied


def hooks(module: nn.Module) -> Dict[str, dict]:
    """The dictionaries in which a module keeps its hooks: shared, as a hook may be the method of a user's object."""
    return {name: value for name, value in vars(module).items() if "_hooks" in name and isinstance(value, dict)}


def replaceable(module: nn.Module) -> bool:
    """Whether a module is a linear layer or an embedding table with a plain weight, and without hooks, which change it
    in unknown ways.
    """
    tables = (nn.Embedding, LearnedPositionalEmbedding)
    plain = type(module) is nn.Linear or (type(module) in tables and module.max_norm is None)
    return (
        plain
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not (module._forward_pre_hooks or module._forward_hooks)
    )


def replacement(module: nn.Module) -> nn.Module:
    """What takes the place of a module that is ``replaceable``."""
    if type(module) is nn.Linear:
        return PreparedLinear(module._parameters)
    return PreparedEmbedding(module) if type(module) is nn.Embedding else PreparedPositions(module)


def own_products(module: nn.Module) -> Set[str]:
    """The parameters of a module of a prepared model that only prepared products and tables read."""
    if isinstance(module, (PreparedLinear, PreparedEmbedding, PreparedPositions)):
        return {"weight"}
    products = {weight for weight, _ in getattr(module, "products", {}).values()}
    return products | set(getattr(module, "tables", {}).values())
