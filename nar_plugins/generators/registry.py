"""Generators by name, as fairseq registers everything else: ``@register_generator("mask_predict", dataclass=...)``.

A generator's options are the fields of its dataclass. The task's config inherits them, so they are flags of fairseq's
commands, and validation with BLEU decodes with them.
"""

import logging
from dataclasses import dataclass, field, fields
from typing import Dict, Optional, Tuple

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
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
