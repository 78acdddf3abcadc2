"""Generators by name, as fairseq registers everything else: ``@register_generator("mask_predict", dataclass=...)``.

A generator's options are the fields of its dataclass. The task's config inherits them, so they are flags of fairseq's
commands, and validation with BLEU decodes with them.
"""

import json
import logging
from argparse import Namespace
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Dict, Optional, Tuple, Union, get_args, get_origin, get_type_hints

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig
from fairseq.models.nat import FairseqNATModel

logger = logging.getLogger(__name__)

DECODE_DTYPES = ChoiceEnum(["float32", "bfloat16", "float16"])
DEDUP = ChoiceEnum(["none", "token", "word"])

GENERATORS: Dict[str, type] = {}
CONFIGS: Dict[str, type] = {}


@dataclass
class DecodingConfig(FairseqDataclass):
    """The option that all generators share."""

    decode_dtype: DECODE_DTYPES = field(
        default="float32", metadata={"help": "autocast the decoding to this type; fairseq's --fp16 casts the weights"}
    )


@dataclass
class SharedGeneratorConfig(DecodingConfig):
    """Options that the generators of the non-autoregressive models share."""

    length_beam: Optional[int] = field(
        default=None,
        metadata={
            "help": "decode this many of the most probable lengths and keep the best (mask_predict 5, one_pass 1)"
        },
    )
    gold_length: bool = field(
        default=False, metadata={"help": "analysis: take the length (beam: a window around it) from the reference"}
    )
    rescorer: Optional[str] = field(
        default=None, metadata={"help": "an autoregressive checkpoint that orders the candidates, in one pass"}
    )
    dedup: DEDUP = field(
        default="none", metadata={"help": "drop consecutive repeated tokens, or words, from the output"}
    )


def register_generator(name: str, dataclass: type):
    """Class decorator: make a generator known as ``--generator name``, with the options of ``dataclass``."""

    def register(cls):
        if name in GENERATORS:
            raise ValueError(f"generator {name} is registered twice")
        GENERATORS[name], CONFIGS[name] = cls, dataclass
        cls.name = name
        return cls

    return register


def config_classes() -> Tuple[type, ...]:
    """The dataclasses of all generators, for the task's config to inherit."""
    return tuple(CONFIGS.values())


def option_names() -> set:
    """Every option of every generator."""
    return {f.name for config in CONFIGS.values() for f in fields(config) if not f.name.startswith("_")}


def default_of(option: str):
    """The default of a generator's option, unset where it has none."""
    return next(f.default for config in CONFIGS.values() for f in fields(config) if f.name == option)


def resolve(name: str, models, beam: int = 1) -> str:
    """The generator that ``--generator name`` means for these models.

    Args:
        beam: ``--beam``. With more than one, ``auto`` takes fairseq's search for a model with proposal heads.

    Raises:
        ValueError: the models cannot be decoded with it, or not with one another.
    """
    for model in models:
        if isinstance(model, FairseqNATModel):
            raise ValueError(f"a {type(model).__name__} is fairseq's own: decode it with --task translation_lev")
    served = [tuple(getattr(model, "generators", ("beam", "blockwise"))) for model in models]  # fairseq's own name none
    if name == "auto":
        name = served[0][0]
        if name == "blockwise" and beam != 1:
            logger.info(f"--beam {beam}: fairseq's beam search; --beam 1 or --generator blockwise decodes blockwise")
            name = "beam"
    if name not in GENERATORS.keys() | {"beam"}:
        raise ValueError(f"--generator {name} does not exist: choose auto, beam, {', '.join(sorted(GENERATORS))}")
    for model, names in zip(models, served):
        if name not in names:
            raise ValueError(
                f"--generator {name} cannot decode a {type(model).__name__}: use --generator auto or "
                f"{' or '.join(names)}"
            )
    return name


def is_parallel(model) -> bool:
    """Whether a model is one of those that predict several positions at once, and not decoded from left to right by
    default.
    """
    return not {"beam", "blockwise"} & {*getattr(model, "generators", ("beam",))[:1]}


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
    for config in (GenerationConfig, *CONFIGS.values()):
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
    mine = {"decode_dtype"} if name == "beam" else {f.name for f in fields(CONFIGS[name])}
    for other in CONFIGS.values():
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
