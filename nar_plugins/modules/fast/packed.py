"""Weights in int8 in the order of oneDNN's kernels, which otherwise reorder a weight in every call.

With AMX a product with a weight in rows takes 1.2 to 2.6 times as long at 280 rows (``docs/notes/speed.md``). Without,
rows are as fast while the weight is in the cache; a whole pass, which reads more than a cache holds, gains 2 to 6 %.

An embedding table that is tied to the projection reads its vectors in the packed memory, so that the weight is there
once.
"""

import ctypes
from typing import Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.int8 import IN_CACHE, TILE, Int8Weight, rows_of_packed

WIDTH = 64  # inputs and outputs of a block of oneDNN's
SMALL = 1 << 17  # numbers; a smaller weight is faster in rows, because a call of this kernel takes 25 us more
FEW = 64  # rows that are multiplied as they are without AMX, where a tile costs as much as its rows


class PackedWeight(NamedTuple):
    """A weight in int8: ``numbers * scales``, as ``Int8Weight``."""

    packed: Tensor  # (in, out), opaque
    words: Tensor  # (out / 64, in / 4, 64) int32, rounded up: the memory of ``packed``; four inputs each
    scales: Tensor  # (out, 1) float32
    sums: Tensor  # (out,) float32, of the numbers times the scale
    zero: Tensor  # (1,) int64: the kernel asks for the zero point of the numbers
    inputs: int
    exact: int  # so few rows are multiplied as they are, more are filled up to tiles

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight in float32: (...) int64 -> (..., in)."""
        return self.whole(indices) * F.embedding(indices, self.scales)

    def whole(self, indices: Tensor) -> Tensor:
        """Rows of the numbers: (...) int64 -> (..., in) int8."""
        words = self.words[indices // WIDTH, :, indices % WIDTH].contiguous()
        return words.view(torch.int8)[..., : self.inputs]

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """The function of whole numbers (P, in) uint8 -> their products times the scales, (P, out) float32.

        oneDNN makes a kernel for every number of rows, which takes ten times as long as to call it: hence whole tiles.
        """
        onednn, (packed, _, scales, _, zero, inputs, exact) = torch.ops.onednn.qlinear_pointwise, self
        scaling = (scales, zero, None, 1.0, 0, torch.float32, "none", [], "")

        def products(numbers: Tensor) -> Tensor:
            count = numbers.size(0)
            if count <= exact or count % TILE == 0:
                return onednn(numbers, 1.0, 0, packed, *scaling)
            tiles = numbers.new_empty(-(-count // TILE) * TILE, inputs)
            tiles[:count].copy_(numbers)
            return onednn(tiles, 1.0, 0, packed, *scaling)[:count]

        return products

    def rows_at_once(self) -> int:
        """The rows of ``numbers`` that are multiplied and scaled at a time."""
        return rows_of_packed(len(self.scales))


def packed_weight(weight: Int8Weight) -> Optional[PackedWeight]:
    """The weight in oneDNN's order; None: it stays in rows."""
    outputs, inputs = weight.numbers.shape
    if not packs(outputs, inputs):
        return None
    packed = torch.ops.onednn.qlinear_prepack(weight.numbers, None)
    memory = torch.ops.mkldnn._nbytes(packed)
    if memory < padded(outputs) * padded(inputs):
        return None
    block = (ctypes.c_int8 * memory).from_address(torch.ops.mkldnn.data_ptr(packed))
    numbers = torch.frombuffer(block, dtype=torch.int8)[: padded(outputs) * padded(inputs)]
    words = numbers.view(torch.int32).view(-1, padded(inputs) // 4, WIDTH)
    made = PackedWeight(
        packed, words, weight.scales, weight.sums, torch.zeros(1, dtype=torch.int64), inputs, 0 if has_amx() else FEW
    )
    # the order is oneDNN's own, and another version may have another
    parts = torch.arange(outputs).split(max(1, IN_CACHE // inputs))
    same = all(torch.equal(made.whole(part), weight.numbers[part]) for part in parts)
    return made if same else None


def packs(outputs: int, inputs: int) -> bool:
    """Whether a weight is packed: it is not small, and this processor has AMX or VNNI, this PyTorch the kernel and its
    memory's address.
    """
    if outputs * inputs < SMALL:
        return False
    onednn = hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch.ops.mkldnn, "data_ptr")
    return onednn and (has_amx() or torch.cpu._is_vnni_supported())


def has_amx() -> bool:
    """Whether this processor has AMX, and this PyTorch knows."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return amx is not None and amx()


def padded(number: int) -> int:
    """Inputs or outputs, filled up to whole blocks."""
    return -(-number // WIDTH) * WIDTH


def packed_bytes(outputs: int, inputs: int) -> int:
    """The memory of a packed weight, with its scales and sums."""
    return padded(outputs) * (padded(inputs) + 4) + 8 * outputs  # oneDNN sums the numbers, too
