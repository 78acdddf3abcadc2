"""Other engines as rows of ``nar-bench``, with the weights of the same checkpoints: ``ct2:CKPT`` is CTranslate2."""

import argparse
import math
from dataclasses import fields
from typing import Dict, List, NoReturn, Sequence, Tuple

import torch
from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.generators import registry
from nar_plugins.generators.base import check_min_len
from nar_plugins.measure.ctranslate import CTranslate2
from nar_plugins.measure.systems import System
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

    def __init__(self, name: str, path: str, data: str, flags: Sequence[str] = ()):
        self.compute_type, flags = split_compute_type(flags)
        super().__init__(name, path, data, flags)

    def start(self) -> None:
        """Convert the model; fairseq's is dropped.

        Raises:
            ValueError: CTranslate2 cannot decode the model, or not with these options.
        """
        self.autoregressive, self.generator = True, None
        self.cuda = torch.cuda.is_available() and not self.cfg.common.cpu
        self.limits = self.models[0].max_decoder_positions()
        self.search = search_options(self.cfg.generation)
        if len(self.models) > 1:
            raise ValueError("CTranslate2 decodes one checkpoint, and no ensemble")
        for option in ("fp16", "bf16"):
            if getattr(self.cfg.common, option):
                raise ValueError(f"{flag(option)}: CTranslate2 has --compute-type instead")
        refuse_options_of_generators(self.task.generator_config(self.cfg.generation))
        self.engine = CTranslate2(
            self.models[0],
            self.task.source_dictionary,
            self.task.target_dictionary,
            self.compute_type,
            torch.get_num_threads(),
            "cuda" if self.cuda else "cpu",
        )
        self.models = []

    def weight_bytes(self) -> int:
        return self.engine.weight_bytes

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        """CTranslate2's translation of every sentence of a batch; the longest output is fairseq's."""
        generation, sources = self.cfg.generation, sample["net_input"]["src_tokens"]
        longest = min(int(generation.max_len_a * sources.size(1) + generation.max_len_b), self.limits - 1)
        check_min_len(generation.min_len, longest)
        translations = self.engine.translate(sources, max_decoding_length=longest, **self.search)
        eos = self.task.target_dictionary.eos()
        return [[{"tokens": torch.tensor([*tokens, eos])}] for tokens in translations]


def split_compute_type(flags: Sequence[str]) -> Tuple[str, List[str]]:
    """The value of ``--compute-type``, by default float32, and the other flags."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # argparse would print the usage and exit
    parser.add_argument("--compute-type", default="float32")
    found, others = parser.parse_known_args(list(flags))
    return found.compute_type, others


def search_options(generation) -> Dict:
    """The arguments of ``CTranslate2.translate`` for fairseq's options of generation, except the maximum length.

    Raises:
        ValueError: an option is set that CTranslate2 does not serve.
    """
    for f in fields(GenerationConfig):
        value = getattr(generation, f.name, f.default)
        if not f.name.startswith("_") and f.name not in SERVED | SILENT and value != f.default:
            raise ValueError(f"{flag(f.name)} cannot be honoured by CTranslate2: leave it out")
    if generation.unkpen not in (0, math.inf):
        raise ValueError(f"--unkpen {generation.unkpen} cannot be honoured by CTranslate2: give inf, or leave it out")
    return {
        "beam": generation.beam,
        "length_penalty": 0.0 if generation.unnormalized else generation.lenpen,
        "min_decoding_length": generation.min_len,
        "no_repeat_ngram_size": generation.no_repeat_ngram_size,
        "disable_unk": generation.unkpen > 0,
    }


def refuse_options_of_generators(config: argparse.Namespace) -> None:
    """Raise for the first option of this package's generators that is set: CTranslate2 would ignore it."""
    if config.generator not in ("auto", "beam"):
        raise ValueError(f"--generator {config.generator} is no search of CTranslate2: leave it out")
    for option in sorted(registry.option_names()):
        if str(getattr(config, option)) != str(registry.default_of(option)):
            instead = "give --compute-type" if option == "decode_dtype" else "leave it out"
            raise ValueError(f"{flag(option)} is no option of CTranslate2: {instead}")
