"""Registries: the flags of what is registered can be extended afterwards."""

from typing import Dict

from fairseq.dataclass import FairseqDataclass
from hydra.core.config_store import ConfigStore


def replace_dataclass(group: str, name: str, kind: type, dataclasses: Dict[str, type], options: type) -> None:
    """Give a registered class another dataclass of options, wherever fairseq and hydra read it.

    fairseq makes its parsers from a class's dataclass when a command begins, after it has imported ``--user-dir``, and
    keeps the dataclass in three places. (No upstream issue.)

    Args:
        group: hydra's, ``task`` or ``criterion``. name: the registered name. kind: the registered class.
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
