"""The contract between models, criterions, the task and generators: all that any of them may ask of a model.

A sentence meets the methods in this order:

    memory = model.encode(src_tokens)           once a sentence
    canvas = model.canvas(memory, plan)         how long, and what the decoder sees first
    features = model.decode(canvas, memory)     one pass, as often as the generator likes
    logits = model.project(features)            only where a token is wanted

``CanvasModel`` lists them for the models that predict a canvas at once; ``NarModel`` (``models/base.py``) implements
all but ``canvas`` and ``forward``. ``BlockModel`` is for what is decoded from left to right. A model names its
generators in ``generators``, the default first; a generator lists in ``needs`` the methods that it calls.

Shapes: B sentences, R canvases (rows), one or several a sentence, S source and T target positions, D the model's width,
V the vocabulary.
"""

from typing import Dict, Hashable, Iterable, NamedTuple, Optional, Protocol, Tuple

from torch import Tensor

from nar_plugins.modules.memory import Memory

__all__ = ["BlockModel", "Canvas", "CanvasModel", "Memory", "Plan", "check_methods"]


class Plan(NamedTuple):
    """What decides the canvases: lengths, or fertilities, or nothing where the source decides (CTC)."""

    sentences: Tensor  # (R,) int64, the sentence of every canvas
    lengths: Optional[Tensor] = None  # (R,) int64, ``</s>`` counted
    fertilities: Optional[Tensor] = None  # (R, S) int64: how often each source token is copied
    width: int = 0  # T; 0: the longest canvas's length


class Canvas(NamedTuple):
    """The decoder's input."""

    inputs: Tensor  # (R, T) int64 tokens, or (R, T, D) embeddings
    padding: Optional[Tensor]  # (R, T) bool, True beyond the length; None: every canvas is T long

    def lengths(self) -> Tensor:
        """(R,) int64."""
        return self.real().sum(1)

    def real(self) -> Tensor:
        """(R, T) bool, True up to the length."""
        if self.padding is None:
            return self.inputs.new_ones(self.inputs.shape[:2], dtype=bool)
        return ~self.padding

    def select(self, rows: Tensor) -> "Canvas":
        """Some of the canvases: (n,) int64."""
        return Canvas(self.inputs[rows], None if self.padding is None else self.padding[rows])


class CanvasModel(Protocol):
    """A model that predicts every position of a canvas in one pass; besides this it is a ``torch.nn.Module``."""

    generators: Tuple[str, ...]  # that decode it, the default first
    predicts: Optional[str]  # what makes the plan: "lengths", "fertilities", or None where the source decides
    length_classes: int  # of ``length_lprobs``; 0 where ``predicts`` is not "lengths"
    blank: Optional[int]  # the token that is dropped, like repetitions, from what is read of a canvas (CTC); None
    canvas_kind: Hashable  # models of one ensemble have the same: their canvases are alike for the same plan

    def encode(self, src_tokens: Tensor, src_lengths: Optional[Tensor] = None) -> Memory:
        """Encode src_tokens (B, S) int64, padded on the right; src_lengths (B,) int64."""

    def canvas(self, memory: Memory, plan: Plan) -> Canvas:
        """The decoder's first input; ``mask_predict`` takes canvases of tokens."""

    def decode(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """One pass of the decoder.

        Args:
            canvas: R canvases. memory: of B sentences, where R is a multiple of B and the canvases of a sentence stand
                next to each other.
            picked: (R, n) int64, the positions that are wanted; None: all. A canvas of which fewer are wanted than of
                another repeats its first one.

        Returns:
            features (R, T or n, D).
        """

    def project(self, features: Tensor) -> Tensor:
        """Features (..., D) -> logits (..., V)."""

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """What training adds to a batch's ``net_input``: a function of (seed, update, sentence), in validation of
        (seed, sentence)."""

    def length_lprobs(self, memory: Memory) -> Tensor:
        """Log-probabilities of the target's lengths, (B, length_classes) float32; class k is k tokens with ``</s>``.
        Asked where ``predicts`` is "lengths"."""

    def fertility_lprobs(self, memory: Memory) -> Tensor:
        """Log-probabilities of every source token's fertility, (B, S, F). Asked where ``predicts`` is
        "fertilities"."""

    def links(self, features: Tensor, canvas: Canvas) -> Tensor:
        """Log-probabilities (R, T, T) float32 that an output goes from one position on to another, -inf where it
        cannot, of the features (R, T, D) of all positions. Asked by the generator ``dag``."""

    def max_decoder_positions(self) -> int:
        """The longest canvas."""


class BlockModel(Protocol):
    """A model of fairseq's encoder-decoder kind that is decoded from left to right, several tokens a call.

    A stock Transformer needs no method: ``modules.block_decoder.block_decoder`` makes its ``BlockDecoder``. Generators
    ask besides for the ``encoder`` of fairseq's interface and for ``full_context_alignment``, where it is there.
    """

    generators: Tuple[str, ...]  # that decode it, the default first

    def block_decoder(self):
        """What decodes blocks of tokens: ``modules.block_decoder.BlockDecoder``, or an object with its ``start``,
        ``__call__``, ``logits`` and ``proposes``."""


def check_methods(model: type, generator: str, methods: Iterable[str], apart_from: Tuple[type, ...] = ()) -> None:
    """Raise unless a class of models has the methods that a generator which it names calls.

    Args:
        apart_from: bases whose methods do not count.

    Raises:
        ValueError: names the model, the generator and the method.
    """
    for name in methods:
        owner = next((base for base in model.__mro__ if name in vars(base)), None)
        if owner is None or owner in apart_from:
            raise ValueError(
                f"{model.__name__} names the generator '{generator}' and has no method '{name}': define it as "
                "nar_plugins/models/contract.py says"
            )
