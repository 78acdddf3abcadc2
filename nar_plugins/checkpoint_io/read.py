"""Reading checkpoints: all checkpoints are read here, must be complete, and run no code when they are loaded.

fairseq's commands read checkpoints by the same rules (``compat/checkpoints.py``). Then ``symbols.py`` compares
dictionaries, ``mask_row.py`` fills the row of ``<mask>``, ``start.py`` copies parameters, and ``teachers.py`` builds
models.
"""

from pathlib import Path
from typing import Dict, List, Union

import torch
import torch.nn as nn
from fairseq import checkpoint_utils

from nar_plugins.compat import checked


def read_mapped(path: Union[Path, str], any_objects: bool = False) -> Dict:
    """The entries of a checkpoint file with memory-mapped tensors, in milliseconds for any size.

    Args:
        any_objects: see ``compat.checked``.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or unsafe; the message says what to do.
    """
    return checked(path, any_objects)


def read_upgraded(path: Union[Path, str]) -> Dict:
    """A checkpoint as fairseq loads it: older versions are upgraded, and there is always a ``cfg``.

    Raises:
        CheckpointError: see ``read_mapped``.
    """
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def setting(state: Dict, group: str, name: str):
    """A training option of a checkpoint; None if it has none. Old trainers kept a flat ``args`` without groups."""
    if state.get("cfg"):
        options = state["cfg"].get(group) or {}
        return options.get(name) if hasattr(options, "get") else getattr(options, name, None)
    return getattr(state.get("args"), name, None)


def prepare_models(models: List[nn.Module], cfg) -> bool:
    """Move models to their device and prepare them for decoding, as ``fairseq-generate`` does.

    Args:
        cfg: of ``fairseq-generate``.

    Returns:
        whether the device is a GPU.
    """
    cuda = torch.cuda.is_available() and not cfg.common.cpu
    for model in models:
        if cfg.common.fp16:
            model.half()
        if cuda:
            model.to("cuda")
        model.prepare_for_inference_(cfg)
    return cuda
