"""Generators by name, as fairseq registers everything else: ``@register_generator("mask_predict", dataclass=...)``.

A generator's options are the fields of its dataclass. The config of every task that takes generators' options inherits
them, so they are flags of fairseq's commands, and validation with BLEU decodes with them.
"""

import logging
from argparse import ArgumentParser
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import lru_cache
from typing import Dict, Iterator, List, Optional, Set, Tuple

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_REGISTRY
from fairseq.models.nat import FairseqNATModel
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

from nar_plugins.compat.registration import replace_dataclass
from nar_plugins.models.contract import check_methods
from nar_plugins.models.flags import flag
from nar_plugins.modules.fast.prepare import DECODE_DTYPES

logger = logging.getLogger(__name__)

DEDUP = ChoiceEnum(["none", "token", "word"])

GENERATORS: Dict[str, type] = {}
CONFIGS: Dict[str, type] = {}


@dataclass
class DecodingConfig(FairseqDataclass):
    """The option that all generators share."""

    decode_dtype: ChoiceEnum(list(DECODE_DTYPES)) = field(
        default="float32",
        metadata={
            "help": "the type of decoding: float32, bfloat16 or float16 by autocast (float16 on x86 CPUs: only of "
            "the linear layers' weights, in products of float32), int8 for the linear layers and the tables of words, "
            "on x86 CPUs with AVX2 or VNNI, or auto, the fastest of float32, float16 there and bfloat16 on this "
            "machine; fairseq's --fp16 casts the weights"
        },
    )


@dataclass
class SharedGeneratorConfig(DecodingConfig):
    """Options that the generators on a canvas share."""

    length_beam: Optional[int] = field(
        default=None,
        metadata={
            "help": "decode this many of the most probable lengths; the best output wins (mask_predict 5, one_pass 1)"
        },
    )
    length_weight: float = field(
        default=0.0,
        metadata={
            "help": "add this many times the log-probability of its length to an output's before outputs of different "
            "lengths are compared: 0 as in Mask-Predict, 1 the joint probability of length and tokens; it matters "
            "with --length-beam above 1"
        },
    )
    compile: bool = field(
        default=False,
        metadata={
            "help": "compile the layers with torch.compile, on GPUs with CUDA graphs, in the first batches: it takes "
            "minutes, and the output stays the same; on CPUs it does not pay (docs/notes/speed.md)"
        },
    )
    gold_length: bool = field(
        default=False, metadata={"help": "analysis: the length of the reference, with --length-beam lengths around it"}
    )
    rescorer: Optional[str] = field(
        default=None, metadata={"help": "an autoregressive checkpoint that scores and orders the candidates"}
    )
    dedup: DEDUP = field(
        default="none", metadata={"help": "drop consecutive repeated tokens, or words, from the output"}
    )


def register_generator(name: str, dataclass: type):
    """Class decorator: register a generator as ``--generator name``, with the options of ``dataclass``.

    A user's own ``--user-dir`` may use it too, before the command line is read: the tasks that take generators' options
    get the new ones.

    Raises:
        ValueError: the name, or the flag of an option, is taken.
    """

    def register(cls):
        if name in GENERATORS:
            raise ValueError(f"generator {name} is registered twice")
        check_flags(name, dataclass)
        GENERATORS[name], CONFIGS[name] = cls, dataclass
        cls.name = name
        extend_tasks()
        return cls

    return register


def check_flags(name: str, config: type) -> None:
    """Raise for the first option of a new generator whose flag is taken; fairseq would drop the second in silence.

    Generators may share an option: a field of the same type, default and help.
    """
    new = {f.name: f for f in fields(config) if not f.name.startswith("_")}
    for other, registered in CONFIGS.items():
        for f in fields(registered):
            if f.name in new and definition(f) != definition(new[f.name]):
                raise ValueError(
                    f"generator {name}: {flag(f.name)} is an option of generator {other} with another meaning: rename "
                    "it"
                )
    owners = list(taken_flags())
    for option in new.keys() - option_names():
        for owner, names in owners:
            if option in names:
                raise ValueError(f"generator {name}: {flag(option)} is a flag of {owner}: rename it")


def definition(f: Field) -> tuple:
    """What two fields of one name must have in common."""
    return f.type, f.default, f.default_factory, dict(f.metadata)


def taken_flags() -> Iterator[Tuple[str, Set[str]]]:
    """The owners of the other options in the parsers of fairseq's commands, and their options."""
    groups = [f.type for f in fields(FairseqConfig) if is_dataclass(f.type)]
    for kind in REGISTRIES.keys() - {"criterion"}:
        groups += REGISTRIES[kind]["dataclass_registry"].values()
    yield "fairseq", {f.name for group in groups for f in fields(group)} | REGISTRIES.keys() | {"arch", "task"}
    for task in generating_tasks():
        yield f"--task {task}", {f.name for f in fields(TASK_DATACLASS_REGISTRY[task])} - option_names()
    for name, model in MODEL_REGISTRY.items():
        if getattr(model, "generators", ()):  # a model that a generator here decodes
            yield f"--arch {name}", options_of(model)
            for criterion in CRITERION_DATACLASS_REGISTRY.keys() & set(getattr(model, "criterions", ())):
                yield f"--criterion {criterion}", {f.name for f in fields(CRITERION_DATACLASS_REGISTRY[criterion])}


@lru_cache
def options_of(model: type) -> Set[str]:
    """The options of a model class."""
    parser = ArgumentParser()
    model.add_args(parser)
    return {action.dest for action in parser._actions}


def generating_tasks() -> List[str]:
    """The registered tasks whose options include generators'."""
    return [name for name, options in TASK_DATACLASS_REGISTRY.items() if issubclass(options, DecodingConfig)]


def with_generator_options(base: type) -> type:
    """A task's dataclass, extended by the options of all generators."""
    missing = [config for config in dict.fromkeys(CONFIGS.values()) if not issubclass(base, config)]
    bases = [config for config in missing if sum(issubclass(other, config) for other in missing) == 1]
    return make_dataclass(base.__name__, [], bases=(base, *bases)) if bases else base


def extend_tasks() -> None:
    """Add the options of generators that were registered later to the registered tasks that take them."""
    for name in generating_tasks():
        options = TASK_DATACLASS_REGISTRY[name]
        extended = with_generator_options(options)
        if extended is not options:
            replace_dataclass("task", name, TASK_REGISTRY[name], TASK_DATACLASS_REGISTRY, extended)


def check_model(model: type) -> None:
    """Raise unless every generator that a model class names is registered, and the class has the methods it calls."""
    for name in getattr(model, "generators", ()):
        if name not in GENERATORS:
            raise ValueError(
                f"{model.__name__} names the generator '{name}', which is not registered: register it with "
                "@register_generator where the model is registered"
            )
        check_methods(model, name, getattr(GENERATORS[name], "needs", ()))


def option_names() -> set:
    """Every option of every generator."""
    return {f.name for config in CONFIGS.values() for f in fields(config) if not f.name.startswith("_")}


def default_of(option: str):
    """The default of a generator's option."""
    return next(f.default for config in CONFIGS.values() for f in fields(config) if f.name == option)


def resolve(name: str, models, beam: int = 1) -> str:
    """The generator that ``--generator name`` means for these models.

    Args:
        beam: ``--beam``. Above 1, ``auto`` is fairseq's search for a model with proposal heads.

    Raises:
        ValueError: the models cannot be decoded with it, or not with one another.
    """
    for model in models:
        if isinstance(model, FairseqNATModel):
            raise ValueError(f"a {type(model).__name__} is fairseq's own: decode it with --task translation_lev")
    # fairseq's own models name no generators
    served = [tuple(getattr(model, "generators", ("beam", "blockwise"))) for model in models]
    if name == "auto":
        name = served[0][0]
        if name == "blockwise" and beam != 1:
            logger.info(f"--beam {beam}: fairseq's beam search; --beam 1 or --generator blockwise decodes blockwise")
            name = "beam"
    if name not in GENERATORS:
        others = sorted(GENERATORS.keys() - {"beam"})
        raise ValueError(f"--generator {name} does not exist: choose auto, beam, {', '.join(others)}")
    for model, names in zip(models, served):
        if name not in names:
            raise ValueError(
                f"--generator {name} cannot decode a {type(model).__name__}: use --generator auto or "
                f"{' or '.join(names)}"
            )
    return name


def is_parallel(model) -> bool:
    """Whether a model's default generator is neither fairseq's search nor blockwise."""
    return not {"beam", "blockwise"} & {*getattr(model, "generators", ("beam",))[:1]}
