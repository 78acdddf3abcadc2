"""Exported models as rows of ``nar-bench``: ``onnx:FOLDER`` is a folder of ``nar-export onnx``, run by ONNX Runtime."""

from argparse import Namespace
from pathlib import Path
from typing import Dict, List, Sequence

import torch
from fairseq import utils

from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.export import runtime
from nar_plugins.export.options import check_run
from nar_plugins.measure.systems import System, parse_flags


class OnnxSystem(System):
    """An exported folder, decoded on the CPU with the threads of the other systems.

    Args:
        name, data: see ``System``. path: the folder.
        flags: of ``fairseq-generate``; the graphs hold some options, and have not all.
    """

    @classmethod
    def parse(cls, path: str, data: str, flags: Sequence[str]) -> Namespace:
        """The flags, parsed, with the options of the translator as ``translator_options``.

        Raises:
            ValueError: see ``parse_flags``; or there is no exported folder, or it does not serve a flag.
        """
        if len(utils.split_paths(path)) > 1:
            raise ValueError("an exported folder is one model, and no ensemble")
        arguments = parse_flags(path, data, flags)
        arguments.translator_options = check_run(arguments, runtime.read_config(Path(path)))
        return arguments

    def load_models(self, path: str) -> list:
        """None of fairseq's."""
        return []

    def start(self) -> None:
        """Load the graphs.

        Raises:
            ValueError: see ``runtime.OnnxTranslator``; or the data have other dictionaries.
        """
        self.cuda, self.autoregressive, self.generator = False, False, None
        self.engine = runtime.OnnxTranslator(
            self.arguments.path, torch.get_num_threads(), **self.arguments.translator_options
        )
        for side in ("source", "target"):
            ours = getattr(self.task, f"{side}_dictionary").symbols
            check_same_symbols(getattr(self.engine, side), ours, f"the {side} dictionary of {self.arguments.data}")

    def weight_bytes(self) -> int:
        return self.engine.weight_bytes

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        """fairseq's hypotheses of the sentences of a batch."""
        return [
            [{**hypothesis, "tokens": torch.tensor(hypothesis["tokens"])} for hypothesis in hypotheses]
            for hypotheses in self.engine.generate(sample)
        ]
