"""Tiny tasks and models for the unit tests, built from the flags that a user types."""

import copy
from argparse import Namespace
from functools import lru_cache

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import nar_plugins  # noqa: F401  (registers everything)
from nar_plugins.tasks.translation import NarTranslationTask


def arguments(*flags: str, arch: str = "cmlm_tiny", criterion: str = "nar_loss") -> Namespace:
    """What fairseq-train's parser makes of the flags."""
    given = ["data", "--task", "nar_translation", "--arch", arch, "--criterion", criterion, *flags]
    return options.parse_args_and_arch(options.get_training_parser(), given)


@lru_cache(maxsize=None)
def converted(*flags: str, **kwargs):
    """``configuration``, shared."""
    return convert_namespace_to_omegaconf(arguments(*flags, **kwargs))


def configuration(*flags: str, **kwargs):
    """fairseq's configuration for ``arguments``. Made once for the same flags, a quarter of a second, then copied."""
    return copy.deepcopy(converted(*flags, **kwargs))


def dictionary(words: int = 20, name: str = "w") -> Dictionary:
    """<s>, <pad>, </s>, <unk> (0 to 3), then the words; without <mask>."""
    made = Dictionary()
    for i in range(words):
        made.add_symbol(f"{name}{i}")
    return made


def task(*flags: str, words: int = 20, **kwargs) -> NarTranslationTask:
    """A task without data; its dictionaries have 4 + words + 1 (<mask>) symbols."""
    config = configuration(*flags, **kwargs)
    return NarTranslationTask(config.task, dictionary(words), dictionary(words))


def model(*flags: str, words: int = 20, seed: int = 1, **kwargs):
    """A model in training mode, and its task."""
    config = configuration(*flags, **kwargs)
    its_task = NarTranslationTask(config.task, dictionary(words), dictionary(words))
    torch.manual_seed(seed)
    return its_task.build_model(config.model), its_task


def total(parts: dict) -> torch.Tensor:
    """The sum of a model's losses."""
    return sum(part.loss for part in parts.values())


def predictions(one, **batch) -> tuple:
    """A model's losses, and what ``forward`` gave to the loss of the tokens: features (B, T, D), target and predicted
    positions (B, T)."""
    seen, loss = [], one.token_loss
    one.token_loss = lambda *given: seen.append(given[:3]) or loss(*given)
    parts = one(**batch)
    del one.token_loss
    return parts, seen
