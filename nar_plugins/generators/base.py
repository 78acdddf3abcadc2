"""The base of all generators: the decoding context, the mean of an ensemble, the symbols that are never output."""

import logging
import math
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterable, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import Module

from nar_plugins.data.dictionary import knows_mask
from nar_plugins.generators.registry import is_parallel
from nar_plugins.modules.fast.choice import fits_float16
from nar_plugins.modules.fast.prepare import prepare_for_decoding


class Banned(NamedTuple):
    """Symbols that a generator never outputs.

    Attributes:
        unlearnt: the models were not trained to predict them. Their logits are -inf, so they have no probability.
        unwanted: -inf after the softmax, so that the probabilities of the others do not change.
    """

    unlearnt: Tuple[int, ...]
    unwanted: Tuple[int, ...]


def banned_symbols(dictionary, mask: int, models: Sequence = (), start: bool = False) -> Banned:
    """The symbols that a left-to-right generator never outputs.

    ``<mask>`` is unlearnt, unless it is an ordinary symbol: the dictionary's file has it, and no model uses it as the
    mask.

    Args:
        models: those that decode. start: the start symbol is unwanted too.
    """
    learnt = knows_mask(dictionary) and not any(map(is_parallel, models))
    unwanted = {dictionary.pad(), dictionary.bos()} if start else {dictionary.pad()}
    return Banned(() if learnt else (mask,), tuple(sorted(unwanted - {dictionary.eos()})))


def banned_on_canvas(dictionary, mask: int) -> Tuple[int, ...]:
    """The symbols that are never output on a canvas. All are unwanted: the softmax includes them."""
    return tuple(sorted({*banned_symbols(dictionary, mask, start=True).unwanted, mask}))


def ensemble_mean(lprobs: Sequence[Tensor]) -> Tensor:
    """The logarithm of the models' mean probabilities, from the log-probabilities (...) of each."""
    if len(lprobs) == 1:
        return lprobs[0]
    return torch.stack(tuple(lprobs)).logsumexp(0) - math.log(len(lprobs))


def refuse_nan(nan: bool, whose: str = "the model's") -> None:
    """Raise where the model's output is NaN."""
    if nan:
        raise ValueError(
            f"{whose} output is NaN: half precision overflowed (decode with --decode-dtype float32 and without "
            "--fp16), or the weights are NaN themselves (a training that diverged)"
        )


def longest_output(options, width: int, most: int) -> int:
    """The most tokens of an output, without ``</s>``, for a batch of sources ``width`` wide.

    Args:
        options: with ``max_len_a`` and ``max_len_b``. most: those that the models have positions for.
    """
    return min(int(options.max_len_a * width + options.max_len_b), most)


def check_min_len(shortest: int, limit: int) -> None:
    """Raise where ``--min-len`` is above ``limit``, the most tokens of an output without ``</s>``."""
    if shortest > limit:
        raise ValueError(f"--min-len {shortest} is above the limit of {limit} tokens: see --max-len-a and -b")


@dataclass
class Statistics:
    """Counts over all batches of a generator."""

    sentences: int = 0

    def line(self) -> Optional[str]:
        """The line for the log at the end of a run, or None."""
        return None


class Generator:
    """Base of all generators; a subclass defines ``generate``, as fairseq calls it.

    Args:
        models: one, or several as an ensemble. They are put into evaluation mode.
        config: the options of the generator's dataclass.
        options: fairseq's ``GenerationConfig``.
        others: further models that are called while decoding.
        compiled: the layers of ``models`` are compiled.

    Attributes:
        models: the models prepared for decoding (``modules/fast/prepare.py``); they share the given ones' parameters.
        others: ``others``, likewise.
    """

    def __init__(self, models, config: Namespace, options: Namespace, others: Sequence = (), compiled: bool = False):
        self.config, self.options, self.statistics = config, options, Statistics()
        for model in (*models, *others):
            model.eval()
        dtype = str(config.decode_dtype)
        self.others_fit: Optional[bool] = None  # float16 holds all models but the first; asked once, for ``auto``
        self.prepared = [prepare_for_decoding(model, dtype, compiled) for model in models]
        self.prepared += [prepare_for_decoding(model, dtype) for model in others]
        prepared = [each.model for each in self.prepared]
        self.models, self.others = prepared[: len(models)], prepared[len(models) :]

    @classmethod
    def served_by(cls, config: Namespace) -> Tuple[str, Namespace]:
        """The name of the generator that serves these options, and its options; another one for an alias."""
        return cls.name, config

    @contextmanager
    def decoding(self, source: Tensor, lean: bool = False):
        """The decoding context: no gradients, ``--decode-dtype``, the prepared models with the weights of now.

        Args:
            source: (B, S) int64, the batch.
            lean: no tensor made in it is used outside as an autograd input. Then ``inference_mode`` replaces
                ``no_grad`` and saves time in every operation; not under autocast, where it casts every weight that is
                no linear layer's in every call.
        """
        dtype = self.dtype(source)
        half = dtype in (torch.bfloat16, torch.float16) and not all(each.in_float32(dtype) for each in self.prepared)
        without_gradients = torch.inference_mode() if lean and not half else torch.no_grad()
        with torch.no_grad():
            for prepared in self.prepared:
                prepared.update(dtype)
        with without_gradients, torch.autocast(source.device.type, dtype if half else None, enabled=half):
            yield

    def dtype(self, source: Tensor) -> torch.dtype:
        """The type to decode a batch (B, S) int64 in; ``auto`` leaves an ensemble alone of which a model is in half
        precision, and takes float16 only where it holds all models.
        """
        first, *others = self.prepared
        if str(self.config.decode_dtype) != "auto":
            return first.dtype(source.device, source.numel())
        if any(each.own_half() is not None for each in self.prepared):
            return torch.float32
        if self.others_fit is None:
            self.others_fit = all(fits_float16(each.model) for each in others)
        return first.dtype(source.device, source.numel(), self.others_fit)

    def give_weights_back(self) -> None:
        """Give back the memory of float32 weights that decoding in int8 does not read; else nothing.

        The given models cannot compute any more, except by this generator.
        """
        if str(self.config.decode_dtype) == "int8":
            for model, prepared in zip(self.models, self.prepared):
                prepared.release(self.reads_weights_of(model))

    def reads_weights_of(self, model) -> Iterable[Module]:
        """The modules of a model whose weights this generator reads itself; it only calls the others."""
        return ()

    def report(self) -> None:
        """Log the statistics; called at the end of fairseq's command."""
        line = self.statistics.line()
        if line is not None:
            logging.getLogger(type(self).__module__).info(line)
