"""The options of generators: how a field is declared, which values it takes, and the old names of some."""

import json
from dataclasses import field, fields
from enum import Enum
from typing import Any, Dict, Optional, Union, get_args, get_origin, get_type_hints

from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.generators import registry
from nar_plugins.models.flags import flag


def option(default, text: str):
    """A field of a generator's dataclass: the default and the help text of its flag."""
    return field(default=default, metadata={"help": text})


def old_name(new: str, default):
    """A field that keeps the old name of the option ``new`` working: its flag, its keyword, its key in checkpoints.

    Args:
        default: that of ``new``.
    """
    return field(default=default, metadata={"help": f"the old name of {flag(new)}", "new_name": new})


def old_names() -> Dict[str, str]:
    """The old name of every renamed option -> the new one."""
    renamed = [f for config in registry.CONFIGS.values() for f in fields(config) if "new_name" in f.metadata]
    return {f.name: f.metadata["new_name"] for f in renamed}


def with_new_names(given: Dict, where: str = "") -> Dict:
    """Options and their values; the old name of an option is replaced by the new one.

    Args:
        given: option -> value, only those that were set. where: the beginning of the message.

    Raises:
        ValueError: an option is given by both of its names.
    """
    given = dict(given)
    for old, new in old_names().items():
        if old in given and new in given:
            raise ValueError(f"{where}{flag(old)} is the old name of {flag(new)}: give one of them")
        if old in given:
            given[new] = given.pop(old)
    return given


def check_json(name: str, text: Optional[str]) -> None:
    """Raise unless a flag's text is a JSON object."""
    try:
        value = json.loads(text or "")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{flag(name)} {text!r} is no JSON object such as '{{\"beam\": 1}}'")


# a field's type -> the advice in the message, and the accepted types; 1 is fine where 1.0 is
TYPES = {
    bool: ("choose true or false", bool),
    int: ("give a whole number", int),
    float: ("give a number", (int, float)),
    str: ("give a string", str),
}


def check_values(given: Dict, where: str) -> None:
    """Raise for the first generation option, fairseq's or this package's, whose value has a wrong type.

    The parser checks types and choices of a command line. Nothing checks those of ``--eval-bleu-args`` and of the
    keywords of fairseq's hub.

    Args:
        given: option -> value. where: the beginning of the message.
    """
    kinds = {"generator": str}
    for config in (GenerationConfig, *registry.CONFIGS.values()):
        kinds.update(get_type_hints(config))
    for name, value in given.items():
        advice = wrong_type(kinds.get(name, Any), value)
        if advice:
            shown = json.dumps(str(value) if isinstance(value, Enum) else value, default=str)
            raise ValueError(f"{where}{name} is {shown}: {advice}")


def wrong_type(kind, value) -> Optional[str]:
    """The advice for a value that is not of a field's type; None for one that is."""
    if get_origin(kind) is Union:  # Optional
        return None if value is None else wrong_type(get_args(kind)[0], value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = [choice.value for choice in kind]
        return None if str(value) in choices else f"choose {', '.join(choices)}"
    if kind not in TYPES:  # Any
        return None
    advice, types = TYPES[kind]
    fine = isinstance(value, types) and (kind is bool) == isinstance(value, bool) and value == value  # NaN is no number
    return None if fine else advice
