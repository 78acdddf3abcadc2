"""Checkpoints as ``fairseq-generate`` loads them, and the step from a batch to its hypotheses."""

import ast
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch.nn as nn
from fairseq import checkpoint_utils, utils
from torch import Tensor

from nar_plugins.checkpoint_io.read import prepare_models
from nar_plugins.compat.checkpoints import check_there


def overrides_of(cfg) -> Dict[str, Any]:
    """The arguments of ``--model-overrides``.

    Args:
        cfg: of ``fairseq-generate``.

    Raises:
        ValueError: they are no dictionary.
    """
    text = cfg.common_eval.model_overrides
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        overrides = None
    if not isinstance(overrides, dict) or not all(isinstance(name, str) for name in overrides):
        raise ValueError(f"--model-overrides {text!r} is no dictionary such as \"{{'encoder_layers_to_keep': '0,1'}}\"")
    return overrides


def load_models(cfg, task) -> List[nn.Module]:
    """The models of ``--path``, one or several joined by colons, on the CPU.

    Args:
        cfg: of ``fairseq-generate``.

    Raises:
        ValueError: ``--model-overrides`` is no dictionary, or there is no checkpoint.
    """
    paths = utils.split_paths(cfg.common_eval.path)
    whole = not cfg.checkpoint.checkpoint_suffix and cfg.checkpoint.checkpoint_shard_count == 1
    for path in paths if whole else ():  # files of other names are fairseq's to find
        check_there(Path(path))
    models, _ = checkpoint_utils.load_model_ensemble(
        paths,
        arg_overrides=overrides_of(cfg),
        task=task,
        suffix=cfg.checkpoint.checkpoint_suffix,
        strict=cfg.checkpoint.checkpoint_shard_count == 1,
        num_shards=cfg.checkpoint.checkpoint_shard_count,
    )
    return models


class Decoder:
    """Models on their device, with the generator that decodes them, as in ``fairseq-generate``.

    A decoding changes the generator's state: no two may run at once.

    Args:
        cfg: of ``fairseq-generate``.
        models: one, or several as an ensemble; they are moved and prepared for decoding.

    Attributes:
        cuda: whether the device is a GPU.

    Raises:
        ValueError: an option cannot be honoured, or the generator cannot decode the models.
    """

    def __init__(self, cfg, task, models: List[nn.Module]):
        self.task, self.models = task, models
        self.cuda = prepare_models(models, cfg)
        self.generator = task.build_generator(models, cfg.generation)

    @property
    def name(self) -> str:
        """The generator's name."""
        return self.generator.name

    def max_positions(self) -> List[tuple]:
        """The longest source and target of every model."""
        return [model.max_positions() for model in self.models]

    def __call__(self, sample: Dict, prefix: Optional[Tensor] = None) -> List[List[Dict]]:
        """fairseq's hypotheses, best first, of every sentence of a batch.

        Args:
            sample: fairseq's batch, on any device.
            prefix: (B, P) int64, padded, the forced beginning of every hypothesis.
        """
        sample, prefix = utils.move_to_cuda((sample, prefix)) if self.cuda else (sample, prefix)
        return self.task.inference_step(self.generator, self.models, sample, prefix_tokens=prefix)
