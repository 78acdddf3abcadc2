"""The other checkpoints of a run, loaded and checked in one place: teachers, which distil or are imitated, and
rescorers are autoregressive; drafters, whose translations blockwise decoding verifies, are not."""

import copy
import functools
from pathlib import Path
from typing import Callable

import torch
import torch.nn as nn
from fairseq import checkpoint_utils, utils
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.models.nat import FairseqNATModel

from nar_plugins.checkpoint_io.mask_row import ADAPTIVE, refuse_adaptive_softmax
from nar_plugins.data.dictionary import check_same_symbols, load_dictionary

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
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    cfg = state["cfg"]
    trained = cfg.task._name
    if trained not in TASKS:
        raise ValueError(f"{path} was trained under --task {trained}: a {role} comes from {' or '.join(TASKS)}")
    arch = cfg.model._name
    if arch not in ARCH_MODEL_REGISTRY:
        raise ValueError(f"{path} holds a model '{arch}', which is not registered here: it cannot be a {role}")
    check(ARCH_MODEL_REGISTRY[arch], path)
    if getattr(
        cfg.model, "adaptive_softmax_cutoff", None
    ):  # before its tables, which may be of other sizes, are loaded
        raise ValueError(f"{path} cannot be a {role}: {ADAPTIVE}")
    check_languages(cfg, task, path, role)
    check_symbols(cfg, state["model"], task)
    own = copy.copy(task)  # building a model sets the task up for it, and with --eval-bleu makes its generator
    own.cfg = copy.deepcopy(task.cfg)
    own.cfg.eval_bleu = False
    with torch.random.fork_rng(devices=[]):  # the run's random numbers do not depend on when the model is loaded
        (model,), _ = checkpoint_utils.load_model_ensemble([path], task=own, state=state)
    check(model, path)
    return model.eval().requires_grad_(False)


def check_teacher(model, name: str, role: str = "teacher") -> None:
    """Raise unless a model, or a class of models, is autoregressive, and its output layer gives logits.

    Args:
        name: what the message calls it, a path for example.
        role: what it would be.
    """
    kind = model if isinstance(model, type) else type(model)
    ours = "beam" in getattr(kind, "generators", ("beam",))  # fairseq's own models have no such list
    causal = model is kind or isinstance(model.decoder, FairseqIncrementalDecoder)
    if not issubclass(kind, FairseqEncoderDecoderModel) or issubclass(kind, FairseqNATModel) or not ours or not causal:
        raise ValueError(f"{name} holds a {kind.__name__}: a {role} is an autoregressive model, such as a transformer")
    if model is not kind:
        refuse_adaptive_softmax(model, f"{name} cannot be a {role}")


def check_drafter(model, name: str) -> None:
    """Raise unless a model, or a class of models, is one of this package's that decode without a left-to-right order.

    Args:
        name: what the message calls it, a path for example.
    """
    kind = model if isinstance(model, type) else type(model)
    if "beam" in getattr(kind, "generators", ("beam",)):  # fairseq's own models have no such list
        raise ValueError(f"{name} holds a {kind.__name__}: a drafter is a non-autoregressive model, a cmlm or a nat")


def check_languages(cfg, task, path: str, role: str) -> None:
    """Raise for a model of the other direction: with a joined dictionary nothing else would give it away."""
    theirs = (cfg.task.source_lang, cfg.task.target_lang)
    ours = (task.cfg.source_lang, task.cfg.target_lang)
    if theirs == ours[::-1] and theirs != ours:
        raise ValueError(
            f"{path} translates {'-'.join(theirs)}, the data are {'-'.join(ours)}: give a {role} of that direction"
        )


def check_symbols(cfg, weights, task) -> None:
    """Raise when the dictionary files that a checkpoint was trained with are still there and are not the task's.

    Checkpoints of ``nar_translation`` hold their symbols, and the task compares them; those of ``translation`` hold the
    path of their data only. A file whose size is not the checkpoint's own (but for ``<mask>``) is of other data by now,
    and says nothing.
    """
    folder = utils.split_paths(cfg.task.data or "")[0]
    # languages that fairseq inferred are not in the checkpoint: then those of the task
    sides = (
        ("source", cfg.task.source_lang or task.cfg.source_lang, "encoder", task.source_dictionary),
        ("target", cfg.task.target_lang or task.cfg.target_lang, "decoder", task.target_dictionary),
    )
    for side, language, part, ours in sides:
        file = Path(folder, f"dict.{language}.txt")
        table = weights.get(f"{part}.embed_tokens.weight")
        if table is None or not file.is_file():
            continue
        theirs = load_dictionary(str(file)).symbols
        if len(table) - len(theirs) in (0, 1):
            check_same_symbols(theirs, ours.symbols, f"the {side} dictionary of {task.cfg.data}")
