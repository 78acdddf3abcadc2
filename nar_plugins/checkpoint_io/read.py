"""The one door: every checkpoint that is read here is whole, and nothing in it runs when it is loaded.

fairseq's commands read theirs by the same rules (``compat/checkpoints.py``). What follows the reading: ``symbols.py``
compares dictionaries, ``mask_row.py`` fills the row of ``<mask>``, ``start.py`` copies parts, ``teachers.py`` builds
the model.
"""

from pathlib import Path
from typing import Dict, List, Union

import torch
import torch.nn as nn
from fairseq import checkpoint_utils

from nar_plugins.compat import checked


def read_mapped(path: Union[Path, str], anything: bool = False) -> Dict:
    """The entries of a checkpoint file, its tensors mapped into memory: milliseconds, whatever its size.

    Args:
        anything: see ``compat.checked``.

    Raises:
        CheckpointError: the file is absent, cut short, foreign or unsafe; the message says what to do.
    """
    return checked(path, anything)


def read_upgraded(path: Union[Path, str]) -> Dict:
    """A checkpoint as fairseq sees it: one of an older version in today's form, always with a ``cfg``.

    Raises:
        CheckpointError: see ``read_mapped``.
    """
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def place(models: List[nn.Module], cfg) -> bool:
    """Put loaded models where they decode, as ``fairseq-generate`` does; whether that is a GPU.

    Args:
        cfg: of ``fairseq-generate``.
    """
    cuda = torch.cuda.is_available() and not cfg.common.cpu
    for model in models:
        if cfg.common.fp16:
            model.half()
        if cuda:
            model.to("cuda")
        model.prepare_for_inference_(cfg)
    return cuda
