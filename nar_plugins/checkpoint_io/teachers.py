"""The other models of a run, read from their checkpoints: teachers, which distil or are imitated, and rescorers are
autoregressive; drafters, whose translations blockwise decoding verifies, are not."""

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
    """The autoregressive model in a checkpoint of ``nar_translation`` or of fairseq's ``translation``; see ``load``."""
    return load(path, task, role, functools.partial(check_teacher, role=role))


def load_drafter(path: str, task) -> nn.Module:
    """The non-autoregressive model of this package in a checkpoint of ``nar_translation``; see ``load``."""
    return load(path, task, "drafter", check_drafter)


def load(path: str, task, role: str, check: Callable) -> nn.Module:
    """The model in a checkpoint, in evaluation mode, without gradients, on the CPU.

    Args:
        path: the checkpoint; a vocabulary without ``<mask>`` is accepted.
        task: whose dictionaries the model must have; it is not changed, whatever the model would set in it.
        role: what the messages call it.
        check: ``check_teacher`` or ``check_drafter``.

    Raises:
        ValueError: there is no whole checkpoint (``CheckpointError``), it holds no model for that role, or its
            dictionaries are others; the message says which symbol differs first, where that can be known.
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
    # before its tables, which may be of other sizes, are loaded
    if getattr(cfg.model, "adaptive_softmax_cutoff", None):
        raise ValueError(f"{path} cannot be a {role}: {ADAPTIVE}")
    check_languages(cfg, task, path, role)
    check_symbols_of_files(cfg, state["model"], task)
    own = copy.copy(task)  # building a model sets the task up for it, and with --eval-bleu makes its generator
    own.cfg = copy.deepcopy(task.cfg)
    own.cfg.eval_bleu = False
    with torch.random.fork_rng(devices=[]):  # the run's random numbers do not depend on when the model is loaded
        (model,), _ = checkpoint_utils.load_model_ensemble([path], task=own, state=state)
    check(model, path)
    return model.eval().requires_grad_(False)


def check_languages(cfg, task, path: str, role: str) -> None:
    """Raise for a model of the other direction: with a joined dictionary nothing else would give it away."""
    theirs = (cfg.task.source_lang, cfg.task.target_lang)
    ours = (task.cfg.source_lang, task.cfg.target_lang)
    if theirs == ours[::-1] and theirs != ours:
        raise ValueError(
            f"{path} translates {'-'.join(theirs)}, the data are {'-'.join(ours)}: give a {role} of that direction"
        )
