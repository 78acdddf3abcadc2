"""A folder of ``nar-export onnx`` in the place of checkpoints: ONNX Runtime decodes, on the CPU."""

from argparse import Namespace
from pathlib import Path
from typing import Dict, List, Optional

import torch
from torch import Tensor

from nar_plugins.data.dictionary import check_same_symbols
from nar_plugins.export import runtime
from nar_plugins.export.options import check_run


class ExportedDecoder:
    """An exported folder, called as ``Decoder`` is.

    Args:
        folder: what ``nar-export onnx`` made.
        arguments: of ``fairseq-generate``; the graphs hold some options, and have not all.
        task: whose dictionaries the folder must have; it then reads text for a parallel model.
        threads: of ONNX Runtime; None: as many as PyTorch has.

    Attributes:
        engine: the ``OnnxTranslator``.

    Raises:
        ValueError: see ``OnnxTranslator`` and ``check_run``; or the dictionaries differ.
    """

    name, cuda, generator = "ONNX Runtime", False, None

    def __init__(self, folder: Path, arguments: Namespace, task, threads: Optional[int] = None):
        options = check_run(arguments, runtime.read_config(folder))
        self.engine = runtime.OnnxTranslator(folder, torch.get_num_threads() if threads is None else threads, **options)
        self.models: List = []
        task.parallel = True
        for side in ("source", "target"):
            ours = getattr(task, f"{side}_dictionary").symbols
            check_same_symbols(getattr(self.engine, side), ours, f"the {side} dictionary of {arguments.data}")

    def max_positions(self) -> List[tuple]:
        """The longest source, and no limit of the target."""
        return [(self.engine.config["max_source_positions"], None)]

    def __call__(self, sample: Dict, prefix: Optional[Tensor] = None) -> List[List[Dict]]:
        """fairseq's hypotheses, best first, of every sentence of a batch.

        Raises:
            ValueError: a prefix is given, or the output is NaN.
        """
        if prefix is not None:
            raise ValueError("--prefix-size cannot be honoured by an exported model: leave it out")
        return [[tensors(hypothesis) for hypothesis in nbest] for nbest in self.engine.generate(sample)]


def tensors(hypothesis: Dict) -> Dict:
    """A hypothesis whose lists are tensors, as fairseq's are."""
    scores = torch.tensor(hypothesis["positional_scores"])
    return {**hypothesis, "tokens": torch.tensor(hypothesis["tokens"]), "positional_scores": scores}


def is_exported(folder: Path) -> bool:
    """Whether ``nar-export onnx`` made a folder: it has graphs."""
    return any(folder.glob("*.onnx"))


def languages_of(folder: Path) -> List[str]:
    """The source and the target language of an exported folder.

    Raises:
        ValueError: its config.json is missing, foreign or of another version.
    """
    return runtime.read_config(folder)["languages"]
