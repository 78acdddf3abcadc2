"""What cannot be decoded in fewer bits, named in one line."""

import math

import torch
import torch.nn as nn

from nar_plugins.modules.adaptive_softmax import refuse_adaptive_softmax
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.half_weights import fits_half
from nar_plugins.modules.fast.linear import PreparedLinear


class BrokenWeights(ValueError):
    """A weight is NaN or infinite: the checkpoint's fault, and no option's."""


def refuse_int8(model: nn.Module) -> None:
    """Raise where a model cannot be decoded in int8.

    Raises:
        ValueError: there are no kernels, or the model has an adaptive softmax or quantisation noise.
    """
    refuse_device(next(model.parameters()).device)
    refuse_adaptive_softmax(model, "--decode-dtype int8")
    noisy = getattr(model.decoder, "quant_noise", None) is not None
    if noisy or any(type(module).__name__ in ("IntLinear", "PQLinear") for module in model.modules()):
        raise ValueError(
            "--decode-dtype int8: this model was trained with --quant-noise-pq or --quant-noise-scalar, another "
            "quantisation: use --decode-dtype float32"
        )


def refuse_nan(model: nn.Module) -> None:
    """Raise where a weight is NaN or infinite, which a quantised input would not pass on.

    Raises:
        BrokenWeights: names the weight.
    """
    for name, parameter in model.named_parameters():
        ends = parameter.detach().aminmax() if parameter.numel() else ()  # without a copy; NaN is passed on
        if not all(map(math.isfinite, ends)):
            raise BrokenWeights(
                f"--decode-dtype int8: {name} is NaN or infinite, in a training that diverged, for example"
            )


def refuse_large(model: nn.Module, dtype: str) -> None:
    """Raise where a weight of a prepared model's linear layers is not in float16's range.

    Args:
        dtype: what ``--decode-dtype`` is.
    """
    layers = {id(layer.weight) for layer in model.modules() if isinstance(layer, PreparedLinear)}
    for name, parameter in model.named_parameters():
        if id(parameter) in layers and not fits_half(parameter):
            raise ValueError(
                f"--decode-dtype {dtype}: {name} is NaN or larger than float16 holds: use --decode-dtype float32"
            )


def refuse_device(device: torch.device) -> None:
    """Raise where int8 has no kernels."""
    reason = int8_lacks(device)
    if reason is not None:
        raise ValueError(f"--decode-dtype int8: {reason}; use --decode-dtype float32, bfloat16 or auto")
