"""Weights in int8 in the order of oneDNN's kernels, for processors with AMX.

There a product with a weight in rows, which oneDNN reorders in every call, takes 1.2 to 2.6 times as
long at 280 rows (``docs/notes/speed.md``). Without AMX rows are about as fast, and remain.

An embedding table that is tied to the projection reads its vectors in the packed memory, so that the weight is there
once.
"""

import ctypes
from typing import NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.int8 import IN_CACHE, Int8Weight

WIDTH = 64  # inputs and outputs of a block of oneDNN's
SMALL = 1 << 17  # numbers; a smaller weight is faster in rows, because a call of this kernel takes 25 us more
TILE = 16  # rows that AMX multiplies at once: so many more or fewer cost nothing
AT_ONCE = 1 << 22  # float32 outputs that are computed and scaled at a time: fewer take longer, more only take memory


class PackedWeight(NamedTuple):
    """A weight in int8: ``numbers * scales``, as ``Int8Weight``."""

    packed: Tensor  # (in, out), opaque
    words: Tensor  # (out / 64, in / 4, 64) int32, rounded up: the memory of ``packed``; four inputs each
    scales: Tensor  # (out, 1) float32
    sums: Tensor  # (out,) float32, of the numbers times the scale
    zero: Tensor  # (1,) int64: the kernel asks for the zero point of the numbers
    inputs: int

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight in float32: (...) int64 -> (..., in)."""
        return self.whole(indices) * F.embedding(indices, self.scales)

    def whole(self, indices: Tensor) -> Tensor:
        """Rows of the numbers: (...) int64 -> (..., in) int8."""
        words = self.words[indices // WIDTH, :, indices % WIDTH].contiguous()
        return words.view(torch.int8)[..., : self.inputs]

    def products(self, numbers: Tensor) -> Tensor:
        """The whole numbers' products times the scales: (P, in) uint8 -> (P, out) float32.

        oneDNN makes a kernel for every number of rows, which takes ten times as long as to call it: hence whole tiles.
        """
        count, tiles = len(numbers), numbers
        if count % TILE:
            tiles = numbers.new_empty(-(-count // TILE) * TILE, self.inputs)
            tiles[:count].copy_(numbers)
        scaling = (self.scales, self.zero, None, 1.0, 0, torch.float32, "none", [], "")
        product = torch.ops.onednn.qlinear_pointwise(tiles, 1.0, 0, self.packed, *scaling)
        return product[:count] if tiles is not numbers else product

    def rows_at_once(self) -> int:
        """The rows of ``numbers`` that are multiplied and scaled at a time."""
        return max(4 * TILE, AT_ONCE // len(self.scales) // TILE * TILE)


def pack(weight: Int8Weight) -> Union[Int8Weight, PackedWeight]:
    """The weight in the order in which this processor multiplies it faster."""
    outputs, inputs = weight.numbers.shape
    if not packs(outputs, inputs):
        return weight
    packed = torch.ops.onednn.qlinear_prepack(weight.numbers, None)
    memory = torch.ops.mkldnn._nbytes(packed)
    if memory < padded(outputs) * padded(inputs):
        return weight
    block = (ctypes.c_int8 * memory).from_address(torch.ops.mkldnn.data_ptr(packed))
    numbers = torch.frombuffer(block, dtype=torch.int8)[: padded(outputs) * padded(inputs)]
    words = numbers.view(torch.int32).view(-1, padded(inputs) // 4, WIDTH)
    made = PackedWeight(packed, words, weight.scales, weight.sums, torch.zeros(1, dtype=torch.int64), inputs)
    # the order is oneDNN's own, and another version may have another
    parts = torch.arange(outputs).split(max(1, IN_CACHE // inputs))
    same = all(torch.equal(made.whole(part), weight.numbers[part]) for part in parts)
    return made if same else weight


def packs(outputs: int, inputs: int) -> bool:
    """Whether a weight is packed: it is not small, and this processor has AMX, this PyTorch the kernel and its memory's
    address.
    """
    if outputs * inputs < SMALL:
        return False
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    onednn = hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch.ops.mkldnn, "data_ptr")
    return amx is not None and amx() and onednn


def padded(number: int) -> int:
    """Inputs or outputs, filled up to whole blocks."""
    return -(-number // WIDTH) * WIDTH


def int8_bytes(weight: Tensor) -> int:
    """The memory of a layer's weight (out, in) in int8, with its scales and sums."""
    outputs, inputs = weight.shape
    if not packs(outputs, inputs):
        return outputs * (inputs + 8)
    return padded(outputs) * (padded(inputs) + 4) + 8 * outputs  # oneDNN sums the numbers, too
