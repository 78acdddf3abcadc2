"""Registries: add flags to a class after its registration, and a place in hydra's options to one without flags."""

from typing import Dict

from fairseq.data import encoders  # noqa: F401  registers the kinds of sub-words
from fairseq.dataclass import FairseqDataclass
from fairseq.registry import REGISTRIES
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


def offer_sub_words_without_options() -> None:
    """Let ``--bpe characters`` and ``--bpe bytes`` be used, which fairseq offers.

    They have no options and so no place in hydra's: every command ends in hydra's list of the others. (No upstream
    issue.)
    """
    kinds = REGISTRIES["bpe"]
    for name in kinds["registry"].keys() - kinds["dataclass_registry"].keys():
        ConfigStore.instance().store(name=name, group="bpe", node={"_name": name}, provider="fairseq")
