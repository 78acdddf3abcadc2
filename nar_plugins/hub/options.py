"""The options of ``fairseq-generate`` for code: parsed from flags, or given as keywords of the same names."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from difflib import get_close_matches
from typing import Dict, List, NoReturn, Sequence, Set, Tuple

from fairseq import options
from fairseq.data.encoders import BPE_REGISTRY, TOKENIZER_REGISTRY
from fairseq.dataclass.configs import GenerationConfig
from fairseq.registry import REGISTRIES

from nar_plugins.generators import registry
from nar_plugins.generators.option_values import check_values
from nar_plugins.models.flags import flag

# fairseq's generation options that a Translator does not take, and why
REFUSED = {
    "constraints": "a text has no constraints here",
    "gold_length": "there are no references",
    "lm_path": "no language model is loaded",
    "lm_weight": "no language model is loaded",
    "prefix_size": "there are no references",
    "print_alignment": "a Translation has no alignment",
    "print_step": "a Translation has its passes",
    "replace_unk": "words are not replaced",
    "sacrebleu": "nothing is scored",
    "score_reference": "there are no references",
    "no_seed_provided": "it is no option",
}
OTHERS = ("cpu", "fp16", "model_overrides", "remove_bpe")
LANGUAGES = ("source_lang", "target_lang")
TASK = (*LANGUAGES, "max_source_positions", "max_target_positions", "truncate_source")
ENCODERS = {"bpe": BPE_REGISTRY, "tokenizer": TOKENIZER_REGISTRY}


def parse(arguments: Sequence[str]) -> Tuple[Namespace, ArgumentParser]:
    """Parse the arguments of ``fairseq-generate``; also the parser, which has the defaults.

    Raises:
        ValueError: that command would refuse them.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = options.get_generation_parser(default_task="nar_translation")
    parser.error = refuse  # argparse would print the usage and exit
    return options.parse_args_and_arch(parser, input_args=[*arguments]), parser


def from_keywords(path: str, data: str, given: Dict) -> Namespace:
    """``parse`` for keywords: ``iterations=4`` is ``--iterations 4``, ``cpu=True`` is ``--cpu``.

    Raises:
        ValueError: an option is unknown or has a wrong value.
    """
    known = option_names()
    for name in given:
        if name in REFUSED:
            raise ValueError(f"{name} is no option here: {REFUSED[name]}")
        if name not in known:
            close = get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {close[0]}?" if close else "the options are flags of fairseq-generate"
            raise ValueError(f"there is no option {name}: {hint}")
    check_values(given, "")
    if given.get("nbest", 1) < 1:
        raise ValueError(f"nbest is {given['nbest']}: give a whole number from 1 up")
    return parse([data, "--path", path, *as_flags(given)])[0]


def option_names() -> Set[str]:
    """Every keyword of ``from_keywords``."""
    generation = {f.name for f in fields(GenerationConfig) if not f.name.startswith("_")}
    return {"generator", *OTHERS, *TASK, *text_options()} | ((generation | registry.option_names()) - REFUSED.keys())


def text_options() -> Set[str]:
    """The options between text and symbols: ``bpe``, ``tokenizer``, and those of each of fairseq's."""
    return {*ENCODERS}.union(*(encoder_options(kind, name) for kind in ENCODERS for name in ENCODERS[kind])) - {*TASK}


def encoder_options(kind: str, name: str) -> Dict[str, object]:
    """The options of a registered ``--bpe`` or ``--tokenizer``, with their defaults.

    Args:
        kind: ``bpe`` or ``tokenizer``.
    """
    config = REGISTRIES[kind]["dataclass_registry"].get(name)
    return {} if config is None else {f.name: f.default for f in fields(config) if not f.name.startswith("_")}


def as_flags(given: Dict) -> List[str]:
    """Keywords as flags; None and False leave an option out, as all switches are off by default."""
    flags = []
    for name, value in given.items():
        if value is True:
            flags.append(flag(name))
        elif value is not None and value is not False:
            flags.append(f"{flag(name)}={value}")
    return flags
