"""Registries: add flags to a class after its registration."""

from typing import Dict

from fairseq.dataclass import FairseqDataclass
from hydra.core.config_store import ConfigStore


def replace_dataclass(group: str, name: str, kind: type, dataclasses: Dict[str, type], options: type) -> None:
    """Replace the options dataclass of a registered class in all three places where fairseq and hydra keep it.

    fairseq builds its parsers from the dataclass when a command starts, after it has imported ``--user-dir``. (No
    upstream issue.)

    Args:
        group: hydra's group, ``task`` or ``criterion``.
        name: the registered name.
        kind: the registered class.
        dataclasses: fairseq's registry of the group, such as ``TASK_DATACLASS_REGISTRY``.
        options: the new dataclass.
    """
    if not issubclass(options, FairseqDataclass):
        raise ValueError(f"{options.__name__} must extend FairseqDataclass")
    setattr(kind, "__dataclass", options)
    dataclasses[name] = options
    node = options()
    node._name = name
    ConfigStore.instance().store(name=name, group=group, node=node, provider="fairseq")
