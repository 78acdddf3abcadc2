"""Linear layers in int8: one scale for each output of the weight; for each row of the input one scale and one offset.

Those of a row span its own smallest and largest value (dynamic quantisation), so that a sentence's output does not
depend on the others of its batch. Products are accumulated in int32 and scaled in float32; a test has the plain form.

The kernels are PyTorch's: FBGEMM's row-wise quantisation, made for embedding tables, takes a tenth of the time of the
same in PyTorch's operators, and oneDNN's product reads the weight as it lies in memory, so that an embedding table and
a projection that are tied share one (``benchmarks/bench_int8.py``). ``packed.py`` has the form of large weights,
``seven_bits.py`` that of all where the processor adds products in 16 bits; ``forms.py`` chooses.
"""

import math
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 127  # of a quantised weight; -128 is not used, so that the range is symmetric
SEVEN_BITS = 128  # the largest number of an input where two products are added in 16 bits: 2 * 128 * 127 fit
TINY = 1e-30  # the scale of a weight's row of zeros
ROWS = 256  # multiplied and scaled at a time: below fifty the product takes longer, and more only take more memory
IN_CACHE = 1 << 17  # numbers of a weight that are quantised at a time, so that they stay in a core's cache
AT_ONCE = 1 << 22  # float32 outputs of a packed weight at a time: fewer take longer, more only take memory
TILE = 16  # rows that AMX multiplies at once: so many more or fewer cost nothing


class QuantisedRows(NamedTuple):
    """An input of linear layers, quantised once for all of them: ``numbers * scales + offsets``."""

    numbers: Tensor  # (P, in) uint8; of seven bits float32, which the product rounds
    scales: Tensor  # (P, 1) float32
    offsets: Tensor  # (P, 1) float32, every row's smallest value
    shape: Tuple[int, ...]  # of the input, without its last dimension
    dtype: torch.dtype  # of the input


class Int8Weight(NamedTuple):
    """A weight in int8: ``numbers * scales``."""

    numbers: Tensor  # (out, in) int8
    scales: Tensor  # (out, 1) float32
    sums: Tensor  # (out,) float32, of the numbers times the scale: what an offset of 1 adds to every output

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight in float32: (...) int64 -> (..., in)."""
        return F.embedding(indices, self.numbers) * F.embedding(indices, self.scales)

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """The function of whole numbers (P, in) uint8 -> their products times the scales, (P, out) float32."""
        columns, scales = self.numbers.t(), self.scales.squeeze(1)

        def products(numbers: Tensor) -> Tensor:
            whole = torch._int_mm(as_bytes(numbers), columns)
            return whole.view(torch.float32).copy_(whole).mul_(scales)  # in the memory of the whole numbers

        return products

    def rows_at_once(self) -> int:
        """The rows of ``numbers`` that are multiplied and scaled at a time."""
        return ROWS


def quantise(x: Tensor) -> QuantisedRows:
    """Quantise every row of (..., in) between its own smallest and largest value: to 0 .. 255, or to 0 .. 128 where
    products are added in 16 bits.
    """
    shape, width = x.shape, x.size(-1)
    rows = x if x.dim() == 2 else x.reshape(-1, width)
    rows = rows if x.dtype == torch.float32 else rows.float()
    # behind the numbers of every row stand its scale and its offset in float32
    numbers, behind = torch.ops.quantized.embedding_bag_byte_prepack(rows).split_with_sizes((width, 8), 1)
    behind = behind if width % 4 == 0 else behind.clone(memory_format=torch.contiguous_format)
    scales, low = behind.view(torch.float32).split_with_sizes((1, 1), 1)
    if not adds_in_16_bits():
        return QuantisedRows(numbers, scales, low, shape[:-1], x.dtype)
    scales = scales * (255 / SEVEN_BITS)  # not half of the numbers of eight bits, which would be rounded twice
    return QuantisedRows((rows - low).div_(scales + TINY), scales, low, shape[:-1], x.dtype)


def adds_in_16_bits() -> bool:
    """Whether this processor adds pairs of int8 products in 16 bits, where those of eight bits overflow: it has no
    VNNI.
    """
    return not torch.cpu._is_vnni_supported()


def as_bytes(numbers: Tensor) -> Tensor:
    """The numbers of ``QuantisedRows`` in uint8."""
    return numbers if numbers.dtype == torch.uint8 else numbers.round().to(torch.uint8)


def rows_of_packed(outputs: int) -> int:
    """The rows of inputs that are multiplied by a packed weight and scaled at a time: whole tiles."""
    return max(4 * TILE, AT_ONCE // outputs // TILE * TILE)


def quantise_weight(weight: Tensor) -> Int8Weight:
    """Quantise every row of a weight (out, in) by its own largest value.

    Some rows at a time: what is computed in between would take three times the memory of the float32 weight.
    """
    numbers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales, sums = (torch.empty(len(weight), 1, device=weight.device) for _ in range(2))
    parts = parts_in_cache(weight)
    for part, whole, scale, total in zip(parts, *(each.split(len(parts[0])) for each in (numbers, scales, sums))):
        part = part.float()
        scale.copy_(part.abs().amax(1, keepdim=True)).clamp_(min=TINY).div_(LARGEST)
        whole.copy_((part / scale).round_())
        total.copy_(whole.sum(1, keepdim=True))
    return Int8Weight(numbers, scales, sums.mul_(scales).squeeze(1))


def parts_in_cache(weight: Tensor) -> Tuple[Tensor, ...]:
    """A weight (out, in) in parts of some rows. PyTorch makes whole copies of what it converts, also to sum it."""
    return weight.split(max(1, IN_CACHE // max(1, weight.size(1))))


def int8_product(weight, bias: Optional[Tensor]) -> Callable[[Union[Tensor, QuantisedRows]], Tensor]:
    """The product with a weight (out, in): (..., in) -> (..., out).

    Args:
        weight: of any form of ``forms.py``.
    """
    bias = None if bias is None else bias.float()
    outputs, at_once, products, sums = len(weight.sums), weight.rows_at_once(), weight.multiplier(), weight.sums

    def part(numbers: Tensor, row_scales: Tensor, offsets: Tensor, out: Optional[Tensor] = None) -> Tensor:
        y = products(numbers)
        out = y if out is None else out
        out = torch.mul(y, row_scales, out=out) if bias is None else torch.addcmul(bias, y, row_scales, out=out)
        return out.addcmul_(offsets, sums)

    def product(x: Union[Tensor, QuantisedRows]) -> Tensor:
        rows = x if isinstance(x, QuantisedRows) else quantise(x)
        count = rows.scales.size(0)  # a fifth of len()'s time
        if count <= at_once:
            y = part(*rows[:3])
        else:
            y = rows.scales.new_empty(count, outputs)
            for parts in zip(*(tensor.split(at_once) for tensor in (*rows[:3], y))):
                part(*parts)
        if len(rows.shape) != 1:
            y = y.view(*rows.shape, outputs)
        return y if rows.dtype == torch.float32 else y.to(rows.dtype)

    return product


def megabytes(number: float) -> str:
    """Bytes for the log."""
    return f"{math.ceil(number / 1e5) / 10:,.1f} MB"
