"""What all generators share: the context of a decoding, the mean of an ensemble, the symbols that are never output."""

import logging
import math
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterable, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from nar_plugins.data.dictionary import knows_mask
from nar_plugins.generators.registry import is_parallel
from nar_plugins.modules.linear import fast_linear


class Banned(NamedTuple):
    """Symbols that a generator never outputs.

    Attributes:
        unlearnt: the models never learnt to predict them. They get no probability: -inf before the softmax.
        unwanted: -inf after the softmax, so that the probabilities of the others are those that the models give.
    """

    unlearnt: Tuple[int, ...]
    unwanted: Tuple[int, ...]


def banned_symbols(dictionary, mask: int, models: Sequence = (), start: bool = False) -> Banned:
    """What a generator that decodes from left to right never outputs.

    ``<mask>`` is unlearnt, unless the dictionary's file has it and no model is one of those that read it as the mask.

    Args:
        models: those that decode. start: the start symbol is unwanted, too.
    """
    learnt = knows_mask(dictionary) and not any(map(is_parallel, models))
    unwanted = {dictionary.pad(), dictionary.bos()} if start else {dictionary.pad()}
    return Banned(() if learnt else (mask,), tuple(sorted(unwanted - {dictionary.eos()})))


def banned_on_canvas(dictionary, mask: int) -> Tuple[int, ...]:
    """What is never output at a position of a canvas; all of it is unwanted, and counts in the softmax."""
    return tuple(sorted({*banned_symbols(dictionary, mask, start=True).unwanted, mask}))


def ban(scores: Tensor, symbols: Iterable[int]) -> Tensor:
    """Scores (..., V) with -inf at some symbols, in place."""
    for symbol in symbols:
        scores[..., symbol] = -math.inf
    return scores


def ensemble_mean(lprobs: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of every model's probabilities: log-probabilities (...) of each -> (...)."""
    if len(lprobs) == 1:
        return lprobs[0]
    return torch.stack(tuple(lprobs)).logsumexp(0) - math.log(len(lprobs))


def refuse_nan(found: bool, whose: str = "the model's") -> None:
    """Raise where a decoding met NaN: what it chose there means nothing."""
    if found:
        raise ValueError(
            f"{whose} output is NaN: half precision overflowed (decode with --decode-dtype float32 and without "
            "--fp16), or the weights are NaN themselves (a training that diverged)"
        )


def check_min_len(shortest: int, limit: int) -> None:
    """Raise a ValueError where ``--min-len`` is above the most tokens, ``</s>`` not counted, that an output may
    have.
    """
    if shortest > limit:
        raise ValueError(f"--min-len {shortest} is above the limit of {limit} tokens: see --max-len-a and -b")


@dataclass
class Statistics:
    """What a generator counts over all its batches."""

    sentences: int = 0

    def line(self) -> Optional[str]:
        """What the log says of it at the end of a run; None: nothing."""
        return None


class Generator:
    """Base of all generators; a subclass defines ``generate``, as fairseq calls it.

    Args:
        models: one or more; several are an ensemble. They are put into evaluation mode.
        config: the options of the generator's dataclass.
        options: fairseq's ``GenerationConfig``.
    """

    def __init__(self, models, config: Namespace, options: Namespace):
        self.models, self.config, self.options = list(models), config, options
        self.dtype = getattr(torch, str(config.decode_dtype))
        self.statistics = Statistics()
        for model in self.models:
            model.eval()

    @classmethod
    def served_by(cls, config: Namespace) -> Tuple[str, Namespace]:
        """The generator that these options of this one mean, and its options: another one where they are an alias."""
        return cls.name, config

    @contextmanager
    def decoding(self, device: torch.device, *others, lean: bool = False):
        """What decoding runs in: no gradients, ``--decode-dtype``, the faster linear layers.

        Args:
            others: further models that are called within it.
            lean: what is made in it never leaves it. Then ``inference_mode`` takes the place of ``no_grad`` and saves
                time in every operation; under autocast it would cast every weight in every call.
        """
        half = self.dtype != torch.float32
        without_gradients = torch.inference_mode() if lean and not half else torch.no_grad()
        autocast = torch.autocast(device.type, self.dtype, enabled=half)
        with without_gradients, fast_linear([*self.models, *others], self.dtype), autocast:
            yield

    def report(self) -> None:
        """Log the statistics; the task has it called at the end of fairseq's command."""
        line = self.statistics.line()
        if line is not None:
            logging.getLogger(type(self).__module__).info(line)
