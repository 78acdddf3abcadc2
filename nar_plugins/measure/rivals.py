"""Other engines as rows of ``nar-bench``, with the weights of the same checkpoints: ``ct2:CKPT`` is CTranslate2."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from typing import Dict, List, NoReturn, Sequence, Tuple

import torch
from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.generators import registry
from nar_plugins.generators.base import check_min_len, longest_output
from nar_plugins.generators.options import NUMBERS, refuse
from nar_plugins.measure.ctranslate import CTranslate2, refuse_missing
from nar_plugins.measure.systems import System, parse_flags
from nar_plugins.models.flags import flag

# fairseq's options that CTranslate2 serves, and those that change no text
SERVED = {"beam", "lenpen", "unnormalized", "max_len_a", "max_len_b", "min_len", "no_repeat_ngram_size", "unkpen"}
SILENT = {"nbest", "print_step", "sacrebleu", "no_seed_provided", "no_early_stop", "no_beamable_mm"}


class CTranslate2System(System):
    """An autoregressive checkpoint, decoded by CTranslate2 on the machine and the threads of the other systems.

    Args:
        name, path, data: see ``System``.
        flags: of ``fairseq-generate``, with ``--compute-type`` among them.
    """

    @classmethod
    def parse(cls, path: str, data: str, flags: Sequence[str]) -> Namespace:
        """The flags, parsed, with ``compute_type``.

        Raises:
            ValueError: see ``parse_flags``; or CTranslate2 is not installed or cannot honour an option.
        """
        compute_type, others = split_compute_type(flags)
        arguments = parse_flags(path, data, others)
        if len(utils.split_paths(path)) > 1:
            raise ValueError("CTranslate2 decodes one checkpoint, and no ensemble")
        refuse_options(arguments)
        refuse_missing()
        arguments.compute_type = compute_type
        return arguments

    def start(self) -> None:
        """Convert the model; fairseq's is dropped.

        Raises:
            ValueError: CTranslate2 cannot decode the model.
        """
        self.autoregressive, self.generator = True, None
        self.cuda = torch.cuda.is_available() and not self.cfg.common.cpu
        self.positions = [self.models[0].max_positions()]
        self.most_tokens = self.models[0].max_decoder_positions() - 1
        self.engine = CTranslate2(
            self.models[0],
            self.task.source_dictionary,
            self.task.target_dictionary,
            self.arguments.compute_type,
            self.threads,
            "cuda" if self.cuda else "cpu",
        )
        self.models = []

    def weight_bytes(self) -> int:
        return self.engine.weight_bytes

    def max_positions(self) -> List[tuple]:
        return self.positions

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        """CTranslate2's translation of every sentence of a batch; the longest output is fairseq's."""
        options, sources = self.cfg.generation, sample["net_input"]["src_tokens"]
        longest = longest_output(options, sources.size(1), self.most_tokens)
        check_min_len(options.min_len, longest)
        translations = self.engine.translate(
            sources,
            options.beam,
            max_decoding_length=longest,
            min_decoding_length=options.min_len,
            length_penalty=0.0 if options.unnormalized else options.lenpen,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            disable_unk=options.unkpen > 0,
        )
        eos = self.task.target_dictionary.eos()
        return [[{"tokens": torch.tensor([*tokens, eos])}] for tokens in translations]


def split_compute_type(flags: Sequence[str]) -> Tuple[str, List[str]]:
    """The value of ``--compute-type``, by default float32, and the other flags."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # argparse would print the usage and exit
    parser.add_argument("--compute-type", default="float32")
    found, others = parser.parse_known_args(list(flags))
    return found.compute_type, others


def refuse_options(arguments: Namespace) -> None:
    """Raise for the first option that CTranslate2 would ignore.

    Args:
        arguments: of ``fairseq-generate``.

    Raises:
        ValueError: names the option.
    """
    refuse(NUMBERS, "any", arguments)
    for option in ("fp16", "bf16"):
        if getattr(arguments, option):
            raise ValueError(f"{flag(option)}: CTranslate2 has --compute-type instead")
    if arguments.generator not in ("auto", "beam"):
        raise ValueError(f"--generator {arguments.generator} is no search of CTranslate2: leave it out")
    for option in sorted(registry.option_names()):
        if str(getattr(arguments, option)) != str(registry.default_of(option)):
            instead = "give --compute-type" if option == "decode_dtype" else "leave it out"
            raise ValueError(f"{flag(option)} is no option of CTranslate2: {instead}")
    for f in fields(GenerationConfig):
        if f.name.startswith("_") or f.name in SERVED | SILENT:
            continue
        if str(getattr(arguments, f.name, f.default)) != str(f.default):
            raise ValueError(f"{flag(f.name)} cannot be honoured by CTranslate2: leave it out")
    if arguments.unkpen not in (0, math.inf):
        raise ValueError(f"--unkpen {arguments.unkpen} cannot be honoured by CTranslate2: give inf, or leave it out")
