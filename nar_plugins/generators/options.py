"""Which options a generator serves: fairseq's and this package's, and what a user is told about the others."""

import json
from argparse import Namespace
from dataclasses import fields
from enum import Enum
from typing import Any, Dict, Optional, Union, get_args, get_origin, get_type_hints

from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.generators import registry


def check_json(name: str, text: Optional[str]) -> None:
    """Raise unless a flag's text is a JSON object."""
    flag = f"--{name.replace('_', '-')}"
    try:
        value = json.loads(text or "")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{flag} {text!r} is no JSON object such as '{{\"beam\": 1}}'")


# a field's type -> what a user is told to give, and what is taken for it; 1 is fine where 1.0 is
TYPES = {
    bool: ("choose true or false", bool),
    int: ("give a whole number", int),
    float: ("give a number", (int, float)),
    str: ("give a string", str),
}


def check_values(given: Dict, where: str) -> None:
    """Raise for the first generation option, of fairseq's or of this package's, that does not have its value.

    Command lines are read by a parser that knows types and choices; ``--eval-bleu-args`` and the keywords of fairseq's
    hub are not.

    Args:
        given: option -> value. where: what the message begins with.
    """
    kinds = {"generator": str}
    for config in (GenerationConfig, *registry.CONFIGS.values()):
        kinds.update(get_type_hints(config))
    for name, value in given.items():
        wanted = wrong_type(kinds.get(name, Any), value)
        if wanted:
            shown = json.dumps(str(value) if isinstance(value, Enum) else value, default=str)
            raise ValueError(f"{where}{name} is {shown}: {wanted}")


def wrong_type(kind, value) -> Optional[str]:
    """What is wanted instead of a value that is not of a dataclass's type; None for one that is."""
    if get_origin(kind) is Union:  # Optional
        return None if value is None else wrong_type(get_args(kind)[0], value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = [choice.value for choice in kind]
        return None if str(value) in choices else f"choose {', '.join(choices)}"
    if kind not in TYPES:  # Any
        return None
    wanted, types = TYPES[kind]
    fine = isinstance(value, types) and (kind is bool) == isinstance(value, bool) and value == value  # NaN is no number
    return None if fine else wanted


def refuse_foreign(config: Namespace, name: str) -> None:
    """Raise for an option of another generator that was set: it would be ignored.

    fairseq's own search (``beam``) takes ``--decode-dtype``.
    """
    mine = {"decode_dtype"} if name == "beam" else {f.name for f in fields(registry.CONFIGS[name])}
    for other in registry.CONFIGS.values():
        for f in fields(other):
            if f.name in mine or f.name.startswith("_"):
                continue
            if str(getattr(config, f.name)) != str(f.default):
                raise ValueError(f"--{f.name.replace('_', '-')} is no option of --generator {name}: leave it out")


def generation_options(args) -> Namespace:
    """fairseq's generation options, with its defaults for those that ``args`` lacks."""
    options = Namespace(**{f.name: f.default for f in fields(GenerationConfig) if f.name != "_name"})
    for name in vars(options):
        if hasattr(args, name):
            setattr(options, name, getattr(args, name))
    return options


# fairseq's options that no parallel decoder refuses: they choose or print, or name what it has too
HONOURED = {
    "beam",
    "nbest",
    "print_step",
    "retain_iter_history",
    "sacrebleu",
    "no_seed_provided",
    "retain_dropout",
    "retain_dropout_modules",
    "no_early_stop",
    "no_beamable_mm",
    "iter_decode_with_external_reranker",
}
OURS = {
    "iter_decode_max_iter": "--iterations counts all passes (fairseq's number plus one)",
    "iter_decode_force_max_iter": "--schedule linear never stops early",
    "iter_decode_with_beam": "use --length-beam",
    "iter_decode_eos_penalty": "it has no meaning here",
}


def refuse_unserved(options: Namespace, generator: str, honoured: set, instead: str = "use --length-beam {}") -> None:
    """Raise for the first of fairseq's options that is set and that ``generator`` does not honour.

    ``--beam`` is 5 by default and a typed 5 looks the same, so only values other than 1 and 5 can be refused.

    Args:
        instead: what to do instead of ``--beam``, with a place for its value.

    Raises:
        ValueError: names the option.
    """
    if options.beam not in (1, 5):
        raise ValueError(f"--beam {options.beam}: {generator} has no beam; {instead.format(options.beam)}")
    for f in fields(GenerationConfig):
        value = getattr(options, f.name, f.default)
        if f.name.startswith("_") or f.name in HONOURED | honoured or value == f.default:
            continue
        hint = OURS.get(f.name, "leave it out")
        raise ValueError(f"--{f.name.replace('_', '-')} cannot be honoured by --generator {generator}: {hint}")


def refuse_for_one_output(options: Namespace, generator: str, rescorer) -> None:
    """Raise for the first of fairseq's options that a left-to-right decoder with one output a sentence cannot honour.

    Args:
        rescorer: the model of ``--rescorer``, or None.
    """
    refused = {
        "--nbest": options.nbest != 1,
        "--retain-dropout": options.retain_dropout,
        "--iter-decode-with-external-reranker": options.iter_decode_with_external_reranker or rescorer is not None,
    }
    for flag, given in refused.items():
        if given:
            raise ValueError(
                f"{flag} cannot be honoured by --generator {generator}, which has one output: leave it out"
            )
    if options.temperature <= 0:
        raise ValueError(f"--temperature {options.temperature}: choose a number above 0")


def refuse_interactive(options: Namespace) -> None:
    """Raise for an option that ``fairseq-interactive`` accepts and cannot honour: it reads no references, and prints
    pairs.
    """
    if options.prefix_size > 0:
        raise ValueError(f"--prefix-size {options.prefix_size}: fairseq-interactive has no references; leave it out")
    if str(options.print_alignment) == "soft":
        raise ValueError(
            "--print-alignment soft: fairseq-interactive prints hard alignments only; use fairseq-generate"
        )
