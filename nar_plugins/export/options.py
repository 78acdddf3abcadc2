"""Which flags of ``fairseq-generate`` an exported model holds, which are given when it is run, and which it has not."""

import re
from argparse import Namespace
from dataclasses import fields
from typing import Dict, Set

import torch.nn as nn
from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.export import runtime
from nar_plugins.generators import registry
from nar_plugins.generators.options import NUMBERS, refuse
from nar_plugins.models.flags import flag

# in the graphs: chosen by the export
HELD = {"length_beam", "fertility"}
# chosen when an exported folder is run; the fairseq options among them change no graph
RUN = {*runtime.OPTIONS, *(name for names in runtime.OF_KIND.values() for name in names)}
NAMES = {"schedule", "dag_decode", "dedup"}  # of fairseq's enumerations
# change no text
SILENT = {"beam", "nbest", "print_step", "sacrebleu", "no_seed_provided", "no_early_stop", "no_beamable_mm"}
GENERATOR_OF = {"iterative": "mask_predict", "dag": "dag"}  # by kind; the others' is one_pass
INSTEAD = {
    "compile": "an exported graph is compiled where it runs; leave it out",
    "decode_dtype": "give --int8 to nar-export onnx, or leave it out",
    "ctc_beam": "the graph outputs CTC's best path only; leave it out",
    "rescorer": "an autoregressive model is no part of it; leave it out",
    "fertility_samples": "sampled fertilities are drawn outside of a graph; leave it out",
    "gold_length": "it reads no references; leave it out",
    "length_weight": "a graph of one pass compares its outputs without it; leave it out",
    "min_len": "its shortest output is fixed; leave it out",
    "retain_iter_history": "its output is the last pass's; leave it out",
}
GENERATORS = {
    "noisy_parallel": "samples fertilities and asks an autoregressive model, which is no graph",
    "blockwise": "is a loop over a cache, which is no graph",
    "bang": "is a loop over a cache, which is no graph",
    "beam": "is a search, which is no graph",
}


def check_exportable(arguments: Namespace) -> None:
    """Raise for the first flag that cannot be exported.

    Args:
        arguments: of ``fairseq-generate``.

    Raises:
        ValueError: names the flag.
    """
    check_given(arguments, RUN - HELD)
    refuse_unserved(arguments, HELD)


def check_run(arguments: Namespace, config: Dict) -> Dict:
    """The options for ``runtime.OnnxTranslator`` that flags of ``fairseq-generate`` give.

    Args:
        arguments: of ``fairseq-generate``. config: of the folder.

    Raises:
        ValueError: the folder does not serve a flag.
    """
    refuse(NUMBERS, "any", arguments)
    served, generator = {*runtime.options_of(config["kind"])}, GENERATOR_OF.get(config["kind"], "one_pass")
    for name in HELD - served:
        if changed(arguments, name) and str(getattr(arguments, name)) != str(config["decoding"].get(name)):
            raise ValueError(
                f"{flag(name)} {getattr(arguments, name)} is not what the folder was exported with: give it to "
                "nar-export onnx --flags"
            )
    refuse_unserved(arguments, served | HELD)
    if arguments.generator not in ("auto", generator):
        raise ValueError(
            f"--generator {arguments.generator} cannot decode this exported model: use auto or {generator}"
        )
    if arguments.model_overrides != "{}":
        raise ValueError(
            "--model-overrides cannot be honoured by an exported model: give it to nar-export onnx --flags"
        )
    own = {name: str(value) if name in NAMES else value for name, value in options_of(arguments, served).items()}
    try:
        runtime.checked_options(config, own)
    except ValueError as error:  # it begins with the name of an option
        name, rest = re.match(r"(\w+)(.*)", str(error)).groups()
        raise ValueError(flag(name) + rest) from None
    return own


def options_of(arguments: Namespace, names: Set[str]) -> Dict:
    """The options that differ from the flags' defaults."""
    return {name: getattr(arguments, name) for name in sorted(names) if changed(arguments, name)}


def changed(arguments: Namespace, name: str) -> bool:
    """Whether an option has another value than its flag's default."""
    defaults = {f.name: f.default for f in fields(GenerationConfig)}
    default = defaults[name] if name in defaults else registry.default_of(name)
    return str(getattr(arguments, name)) != str(default)


def refuse_unserved(arguments: Namespace, served: Set[str]) -> None:
    """Raise for the first option of decoding that is set and not served."""
    if arguments.generator in GENERATORS:
        raise ValueError(
            f"--generator {arguments.generator} {GENERATORS[arguments.generator]} and cannot be exported: leave it out"
        )
    for name in ("fp16", "bf16"):
        if getattr(arguments, name):
            raise ValueError(f"{flag(name)}: an exported model is float32, or int8 by nar-export onnx --int8")
    if arguments.beam not in (1, 5):
        raise ValueError(f"--beam {arguments.beam}: an exported model has no beam; leave it out")
    names = registry.option_names() | {f.name for f in fields(GenerationConfig) if not f.name.startswith("_")}
    for name in sorted(names - served - SILENT):
        if hasattr(arguments, name) and changed(arguments, name):
            raise ValueError(
                f"{flag(name)} cannot be honoured by an exported model: {INSTEAD.get(name, 'leave it out')}"
            )


def held_options(arguments: Namespace, model: nn.Module) -> Dict:
    """The options that the graphs of a model hold, by name; none of an iterative one's.

    Raises:
        ValueError: one is set that is chosen when the model is run.
    """
    if "one_pass" not in model.generators:
        check_given(arguments, HELD)
        return {}
    if model.predicts == "lengths":
        beam = registry.GENERATORS["one_pass"].default_length_beam
        return {"length_beam": beam if arguments.length_beam is None else arguments.length_beam}
    return {"fertility": str(arguments.fertility)} if model.predicts == "fertilities" else {}


def check_given(arguments: Namespace, names: Set[str]) -> None:
    """Raise for the first option of these that is set: it is chosen when the model is run."""
    for name in options_of(arguments, names):
        raise ValueError(f"{flag(name)} is chosen when the exported model is run: leave it out of --flags")
