"""Training noise as a pure function of (seed, update, sentence).

It does not depend on the batch, the worker or the state of a random generator. So a resumed run, a run on two workers
and a run with ``--update-freq`` have the same noise. The random numbers are a counter-based hash (splitmix64, Steele et
al. 2014, "Fast splittable pseudorandom number generators", figure 15) computed on the device.
"""

from typing import Callable, Dict, Tuple

import torch
from torch import Tensor

# offsets of the update number: each purpose has its own random numbers
GLANCING_STREAM = 1 << 40
FERTILITY_STREAM = 2 << 40
HEAD_STREAM = 3 << 40
ROW_STREAM = 4 << 40
MODE_STREAM = 5 << 40
POSITION_STREAM = 7 << 40
SPAN_STREAM = 6 << 40  # an offset of the epoch number; validation uses epoch 0, which training does not have
VALIDATION_UPDATE = -1  # the "update" of validation noise: it depends on (seed, sentence) alone


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64; PyTorch's shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit constant."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def splitmix64(x: Tensor) -> Tensor:
    """The splitmix64 hash of int64 values, element by element."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def uniform(seed: int, update: int, sentences: Tensor, draws: int) -> Tensor:
    """Uniform random numbers in [0, 1) for every sentence.

    Args:
        seed: the run's ``--seed``.
        update: the number of the update, or ``VALIDATION_UPDATE``.
        sentences: (B,) int64, the indices of the sentences in their data set.
        draws: random numbers per sentence; the first n do not depend on ``draws``.

    Returns:
        (B, draws) float64.
    """
    state = splitmix64(sentences.new_tensor(seed))
    state = splitmix64(state ^ update)
    state = splitmix64(state ^ sentences).unsqueeze(1)
    counter = torch.arange(draws, device=sentences.device).unsqueeze(0)
    bits = splitmix64(state ^ splitmix64(counter))
    return _shift_right(bits, 11).double() * 2.0**-53


def mask_uniform(
    target: Tensor, sentences: Tensor, seed: int, update: int, pad: int, mask: int
) -> Tuple[Tensor, Tensor]:
    """Mask k ~ U{1..N} of the N target tokens of every sentence, without replacement.

    Mask-Predict, Ghazvininejad et al. 2019, section 3.1. (The release draws from U{1..N-1} and so never trains the
    fully masked input that its first pass always sees; the paper's text is followed here.)

    Args:
        target: (B, T) int64, padded on the right; ``</s>`` counts as a token.
        sentences: (B,) int64, the indices of the sentences in their data set.

    Returns:
        canvas: (B, T) int64, the target with ``mask`` at the masked positions.
        masked: (B, T) bool, True at those positions.
    """
    real = target.ne(pad)
    lengths = real.sum(1)
    draws = uniform(seed, update, sentences, 1 + target.size(1))
    count = 1 + (draws[:, 0] * lengths).long()
    order = draws[:, 1:].masked_fill(~real, float("inf"))
    rank = order.argsort(1).argsort(1)
    masked = (rank < count.unsqueeze(1)) & real
    return target.masked_fill(masked, mask), masked


# (target (B, T) int64, sentences (B,) int64, seed, update, pad, mask) -> canvas (B, T) int64
Noise = Callable[[Tensor, Tensor, int, int, int, int], Tensor]
NOISES: Dict[str, Noise] = {}


def register_noise(name: str) -> Callable[[Noise], Noise]:
    """Function decorator: make a noise known as ``--target-noise name`` of the masked models.

    It may be used at any time before the model is built, in a user's own ``--user-dir`` too. The function takes the
    target, padded on the right, the numbers of its sentences, which with seed and update decide the noise, and the
    indices of padding and ``<mask>``; it returns the decoder's input. Where that is ``<mask>`` the model learns.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Noise) -> Noise:
        if name in NOISES:
            raise ValueError(f"noise {name} is registered twice")
        NOISES[name] = function
        return function

    return register


def noise_named(name: str) -> Noise:
    """The noise that ``--target-noise`` names."""
    if name not in NOISES:
        raise ValueError(f"--target-noise {name} does not exist: choose {', '.join(sorted(NOISES))}")
    return NOISES[name]


@register_noise("uniform")
def uniformly_masked(target: Tensor, sentences: Tensor, seed: int, update: int, pad: int, mask: int) -> Tensor:
    """The canvas of ``mask_uniform``."""
    return mask_uniform(target, sentences, seed, update, pad, mask)[0]
