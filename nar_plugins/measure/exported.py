"""Exported models as rows of ``nar-bench``: ``onnx:FOLDER`` is a folder of ``nar-export onnx``, run by ONNX Runtime."""

from argparse import Namespace
from pathlib import Path
from typing import Sequence

from fairseq import utils

from nar_plugins.export import runtime
from nar_plugins.export.options import check_run
from nar_plugins.hub.exported import ExportedDecoder
from nar_plugins.measure.systems import System, parse_flags


class OnnxSystem(System):
    """An exported folder, decoded on the CPU with the threads of the other systems.

    Args:
        name, data: see ``System``. path: the folder.
        flags: of ``fairseq-generate``; the graphs hold some options, and have not all.
    """

    parallel = True

    @classmethod
    def parse(cls, path: str, data: str, flags: Sequence[str]) -> Namespace:
        """The flags, parsed.

        Raises:
            ValueError: see ``parse_flags``; or there is no exported folder, or it does not serve a flag.
        """
        if len(utils.split_paths(path)) > 1:
            raise ValueError("an exported folder is one model, and no ensemble")
        arguments = parse_flags(path, data, flags)
        check_run(arguments, runtime.read_config(Path(path)))
        return arguments

    def load_models(self, path: str) -> list:
        """None of fairseq's; the graphs, before the data, which they have the task read for a parallel model.

        Raises:
            ValueError: see ``ExportedDecoder``.
        """
        self.decoder = ExportedDecoder(Path(path), self.arguments, self.task, self.threads)
        return []

    def start(self) -> None:
        self.cuda, self.autoregressive, self.generator = False, False, None

    def weight_bytes(self) -> int:
        return self.decoder.engine.weight_bytes
