"""The log-probabilities of given targets under an autoregressive model, in one pass over all positions."""

import functools
import inspect
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.precision import full


def check_forced(model, name: str) -> None:
    """Raise a ValueError unless a model's decoder returns the features of all positions at once.

    Args:
        name: of the model in the message.
    """
    if "features_only" not in inspect.signature(model.decoder.forward).parameters:
        raise ValueError(f"{name} holds a {type(model).__name__}: given targets are scored by a Transformer only")


def encode_source(model, tokens: Tensor, pad: int, role: str = "teacher") -> Dict:
    """The encoder's output for sources (B, S) int64, padded on the right.

    Args:
        role: of the model in the message.

    Raises:
        ValueError: a source is longer than the model's positions.
    """
    check_source(model.encoder.max_positions(), tokens, pad, role)
    return model.encoder(tokens, src_lengths=tokens.ne(pad).sum(1))


def check_source(positions: int, tokens: Tensor, pad: int, role: str) -> None:
    """Raise a ValueError when a source (B, S) is longer than the ``positions`` of the model in a role."""
    check_width(
        tokens,
        pad,
        positions,
        f"source of {{}} tokens is longer than the {role}'s {{}} positions: give one with more "
        "--max-source-positions, or shorter sources",
    )


def check_width(tokens: Tensor, pad: int, limit: int, message: str) -> None:
    """Raise a ValueError when a row of (R, T) has more than ``limit`` tokens; narrow batches are not read."""
    if tokens.size(1) > limit:
        longest = int(tokens.ne(pad).sum(1).max())
        if longest > limit:
            raise ValueError("a " + message.format(longest, limit))


def forced_features(
    model, encoder_out: Dict, tokens: Tensor, pad: int, eos: int, sentences: Optional[Tensor] = None
) -> Tensor:
    """The decoder's features (R, T, D) before each of the tokens.

    Args:
        model: an AR model. encoder_out: of its encoder, for B sentences.
        tokens: (R, T) int64, targets that end in ``eos``, padded on the right.
        sentences: (R,) int64, the sentence of each target; None: R = B, in order.

    Raises:
        ValueError: a target is longer than the model's positions.
    """
    check_width(
        tokens,
        pad,
        model.max_decoder_positions(),
        "target of {} tokens is longer than the teacher's {} positions: "
        "give one with more --max-target-positions, or shorter targets",
    )
    if sentences is not None:
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, sentences)
    before = F.pad(tokens[:, :-1], (1, 0), value=eos)  # fairseq's decoders start from </s>
    before[:, 1:].masked_fill_(tokens[:, 1:].eq(pad), pad)
    return model.decoder(before, encoder_out=encoder_out, features_only=True)[0]


def forced_lprobs(model, features: Tensor, mask: int, temperature: float = 1.0) -> Tensor:
    """Log-probabilities (..., V) of features (..., D), float32 (or float64); ``mask``, which an AR model
    has not learnt, at -inf.
    """
    logits = full(model.decoder.output_layer(features)) / temperature
    return logits.index_fill(-1, torch.tensor([mask], device=logits.device), -float("inf")).log_softmax(-1)


def token_lprobs(model, encoder_out: Dict, sentences: Tensor, tokens: Tensor, pad: int, eos: int, mask: int) -> Tensor:
    """The log-probability of every token: (R, T), 0 on padding; the arguments are ``forced_features``'."""
    real = tokens.ne(pad)
    features = forced_features(model, encoder_out, tokens, pad, eos, sentences)[real]
    lprobs = forced_lprobs(model, features, mask).gather(-1, tokens[real].unsqueeze(-1)).squeeze(-1)
    return torch.zeros(tokens.shape, dtype=lprobs.dtype, device=tokens.device).masked_scatter(real, lprobs)


class Teacher:
    """A frozen autoregressive model with the sources of one batch.

    The criterion passes it to ``forward`` of the student; its parameters are not the student's.

    Args:
        model: in evaluation mode. sources: (B, S) int64, padded on the right. mask: the index of ``<mask>``, which the
            teacher has not learnt.
    """

    def __init__(self, model, sources: Tensor, mask: int):
        self.model, self.sources, self.mask = model, sources, mask

    @functools.cached_property
    @torch.no_grad()
    def encoded(self) -> Dict:
        """The encoder's output, computed once."""
        return encode_source(self.model, self.sources, self.model.decoder.dictionary.pad())

    @torch.no_grad()
    def features(self, targets: Tensor) -> Tensor:
        """The decoder's features (B, T, D) before each token of the targets (B, T) int64."""
        dictionary = self.model.decoder.dictionary
        return forced_features(self.model, self.encoded, targets, dictionary.pad(), dictionary.eos())

    @torch.no_grad()
    def lprobs(self, features: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities (..., V) of features (..., D), ``<mask>`` at -inf."""
        return forced_lprobs(self.model, features, self.mask, temperature)
