"""Loading the other models of a run: teachers, rescorers and drafters.

Teachers and rescorers are autoregressive. Drafters are not; blockwise decoding verifies their outputs.
"""

import copy
import functools
from typing import Callable

import torch
import torch.nn as nn
from fairseq import checkpoint_utils
from fairseq.models import ARCH_MODEL_REGISTRY

from nar_plugins.checkpoint_io.read import read_upgraded
from nar_plugins.checkpoint_io.roles import check_drafter, check_teacher
from nar_plugins.checkpoint_io.symbols import check_symbols_of_files
from nar_plugins.modules.adaptive_softmax import ADAPTIVE

TASKS = ("nar_translation", "translation")


def load_teacher(path: str, task, role: str = "teacher") -> nn.Module:
    """Load an autoregressive model, trained under ``nar_translation`` or fairseq's ``translation``; see ``load``."""
    return load(path, task, role, functools.partial(check_teacher, role=role))


def load_drafter(path: str, task) -> nn.Module:
    """Load a non-autoregressive model of this package; see ``load``."""
    return load(path, task, "drafter", check_drafter)


def load(path: str, task, role: str, check: Callable) -> nn.Module:
    """Load the model of a checkpoint on the CPU, in evaluation mode and without gradients.

    Args:
        path: the checkpoint; a vocabulary without ``<mask>`` is accepted.
        task: the model must have its dictionaries; building the model does not change it.
        role: the model's role, for messages.
        check: ``check_teacher`` or ``check_drafter``.

    Raises:
        ValueError: there is no complete checkpoint (``CheckpointError``), its model does not fit the role, or its
            dictionaries differ; the first different symbol is named if it can be determined.
    """
    state = read_upgraded(path)
    cfg = state["cfg"]
    trained = cfg.task._name
    if trained not in TASKS:
        raise ValueError(f"{path} was trained under --task {trained}: a {role} comes from {' or '.join(TASKS)}")
    arch = cfg.model._name
    if arch not in ARCH_MODEL_REGISTRY:
        raise ValueError(f"{path} holds a model '{arch}', which is not registered here: it cannot be a {role}")
    check(ARCH_MODEL_REGISTRY[arch], path)
    # refused before its tables are loaded, which may have other sizes
    if getattr(cfg.model, "adaptive_softmax_cutoff", None):
        raise ValueError(f"{path} cannot be a {role}: {ADAPTIVE}")
    check_languages(cfg, task, path, role)
    check_symbols_of_files(cfg, state["model"], task)
    task = copy.copy(task)  # building a model changes the task, and with --eval-bleu builds a generator
    task.cfg = copy.deepcopy(task.cfg)
    task.cfg.eval_bleu = False
    with torch.random.fork_rng(devices=[]):  # the run's random numbers do not depend on when the model is loaded
        (model,), _ = checkpoint_utils.load_model_ensemble([path], task=task, state=state)
    check(model, path)
    return model.eval().requires_grad_(False)


def check_languages(cfg, task, path: str, role: str) -> None:
    """Raise for a model of the other direction, which a joined dictionary would not reveal."""
    theirs = (cfg.task.source_lang, cfg.task.target_lang)
    ours = (task.cfg.source_lang, task.cfg.target_lang)
    if theirs == ours[::-1] and theirs != ours:
        raise ValueError(
            f"{path} translates {'-'.join(theirs)}, the data are {'-'.join(ours)}: give a {role} of that direction"
        )
