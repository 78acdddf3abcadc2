"""The form of an int8 weight that this processor multiplies faster, and what is missing for int8."""

from typing import Optional, Union

import torch
from torch import Tensor

from nar_plugins.modules.fast.int8 import Int8Weight, adds_in_16_bits
from nar_plugins.modules.fast.packed import PackedWeight, packed_bytes, packed_weight, packs
from nar_plugins.modules.fast.seven_bits import (
    ColumnsWeight,
    FbgemmWeight,
    seven_bit_bytes,
    seven_bit_weight,
    seven_bits_are_exact,
)

Int8Form = Union[Int8Weight, PackedWeight, ColumnsWeight, FbgemmWeight]


def pack(weight: Int8Weight, looked_up: bool = False) -> Int8Form:
    """The weight in the form in which this processor multiplies it faster.

    Args:
        looked_up: its rows are read, too: it is tied to an embedding table.
    """
    made = seven_bit_weight(weight, looked_up) if adds_in_16_bits() else packed_weight(weight)
    return weight if made is None else made


def int8_bytes(weight: Tensor, looked_up: bool = False) -> int:
    """The memory of a layer's weight (out, in) in int8, with its scales and sums."""
    outputs, inputs = weight.shape
    if adds_in_16_bits():
        return seven_bit_bytes(outputs, inputs, looked_up)
    return packed_bytes(outputs, inputs) if packs(outputs, inputs) else outputs * (inputs + 8)


def int8_lacks(device: torch.device) -> Optional[str]:
    """What is missing for int8 on a device; None: nothing."""
    if device.type != "cpu":
        return f"it is for CPUs, and this is {device.type}"
    if not torch.backends.mkldnn.is_available() or not kernels_work():
        return "this PyTorch has no oneDNN with int8"
    if adds_in_16_bits() and not seven_bits_are_exact():
        return "this processor has no VNNI instructions, and this PyTorch no products of seven bits for it"
    return None


def kernels_work() -> bool:
    """Whether this PyTorch has quantisation by rows and products with unsigned and strided inputs."""
    if not hasattr(torch, "_int_mm") or not hasattr(torch.ops.quantized, "embedding_bag_byte_prepack"):
        return False
    numbers = torch.arange(48, dtype=torch.uint8).view(3, 16) + 200
    try:
        product = torch._int_mm(numbers[:, :8], numbers.to(torch.int8)[:, :8].contiguous().t())
    except RuntimeError:  # PyTorch's answer to types and layouts that a kernel does not take
        return False
    return torch.equal(product.long(), numbers[:, :8].long() @ numbers.to(torch.int8)[:, :8].long().t())
