"""The activation functions of feed-forward layers."""

from typing import Callable

import torch
import torch.nn.functional as F
from fairseq import utils
from torch import Tensor


def activation(cfg) -> Callable[[Tensor], Tensor]:
    """The activation function by name; GELU (erf form) in the type of its input, fairseq's goes through float32."""
    return F.gelu if cfg.activation_fn == "gelu" else utils.get_activation_fn(cfg.activation_fn)


def in_place(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function in its input's own memory, where PyTorch has it; nothing else may read the input.

    A batch's hidden states take megabytes. New memory for their activations costs a small model more than the function.
    """
    return torch.relu_ if function is F.relu else function
