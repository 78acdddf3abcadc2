"""Int8 on x86 processors without VNNI: inputs of seven bits, whose products do not overflow.

Such a processor adds two products in 16 bits: 2 * 255 * 127 is too much for them, 2 * 128 * 127 is not. The kernels are
FBGEMM's, the faster one for a sentence, which fills the inputs up to multiples of 512, and oneDNN's, which leaves a
weight in columns here, so that a table that is tied to the projection reads its vectors in it
(``benchmarks/bench_int8.py``). ``torch._int_mm`` takes twenty times as long as the product in float32
(``findings/int_mm_without_vnni_is_slower_than_float32.sh``).
"""

import ctypes
import warnings
from typing import Any, Callable, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.half_weights import fbgemm_is_the_engine
from nar_plugins.modules.fast.int8 import LARGEST, SEVEN_BITS, Int8Weight, as_bytes, rows_of_packed

FULL = 512  # inputs of a block of FBGEMM's
PROBED = 64  # inputs and outputs of the weight that tells whether products are exact


class ColumnsWeight(NamedTuple):
    """A weight in int8 for oneDNN: ``numbers * scales``, as ``Int8Weight``."""

    packed: Tensor  # (in, out), opaque
    columns: Tensor  # (in, out) int8, the memory of ``packed``
    scales: Tensor  # (out, 1) float32
    sums: Tensor  # (out,) float32, of the numbers times the scale
    zero: Tensor  # (1,) int64: the kernel asks for the zero point of the numbers

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight in float32: (...) int64 -> (..., in)."""
        numbers = self.columns.index_select(1, indices.flatten()).t().reshape(*indices.shape, -1)
        return numbers * F.embedding(indices, self.scales)

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """The function of numbers (P, in) -> their products times the scales, (P, out) float32."""
        onednn, (packed, _, scales, _, zero) = torch.ops.onednn.qlinear_pointwise, self
        scaling = (scales, zero, None, 1.0, 0, torch.float32, "none", [], "")
        return lambda numbers: onednn(as_bytes(numbers), 1.0, 0, packed, *scaling)

    def rows_at_once(self) -> int:
        """The rows of ``numbers`` that are multiplied and scaled at a time."""
        return rows_of_packed(len(self.sums))


class FbgemmWeight(NamedTuple):
    """A weight in int8 for FBGEMM, whose rows cannot be read."""

    packed: Any  # FBGEMM's, with the scales
    sums: Tensor  # (out,) float32, of the numbers times the scale

    def multiplier(self) -> Callable[[Tensor], Tensor]:
        """The function of numbers (P, in) -> their products times the scales, (P, out) float32."""
        packed, fbgemm = self.packed, torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return lambda numbers: fbgemm(numbers.float(), 1.0, 0, packed)

    def rows_at_once(self) -> int:
        """The rows of ``numbers`` that are multiplied and scaled at a time."""
        return rows_of_packed(len(self.sums))


def seven_bit_weight(weight: Int8Weight, looked_up: bool) -> Union[ColumnsWeight, FbgemmWeight, None]:
    """The weight for the faster kernel that this PyTorch has; None: there is none.

    Args:
        looked_up: its rows are read, too.
    """
    made = fbgemm_weight(weight) if for_fbgemm(weight.numbers.size(1), looked_up) else None
    return columns_weight(weight) if made is None else made


def for_fbgemm(inputs: int, looked_up: bool) -> bool:
    """Whether FBGEMM is to multiply a weight: it would fill other inputs up."""
    return not looked_up and inputs % FULL == 0


def fbgemm_weight(weight: Int8Weight) -> Optional[FbgemmWeight]:
    """The weight for FBGEMM; None: this PyTorch does not have it, or quantises by another engine."""
    if not fbgemm_is_the_engine():
        return None
    scales = weight.scales.flatten().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors, which hand the weight over, are to leave PyTorch
        try:
            zeros = torch.zeros(len(scales), dtype=torch.int64)
            numbers = torch._make_per_channel_quantized_tensor(weight.numbers, scales, zeros, 0)
            made = FbgemmWeight(torch.ops.quantized.linear_prepack(numbers, None), weight.sums)
            made.multiplier()(torch.zeros(1, weight.numbers.size(1)))
        except (AttributeError, RuntimeError):  # PyTorch's answers where it has no such operator, or only for others
            return None
    return made


def columns_weight(weight: Int8Weight) -> Optional[ColumnsWeight]:
    """The weight for oneDNN; None: this PyTorch does not have it, or orders the numbers otherwise."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise") or not hasattr(torch.ops.mkldnn, "data_ptr"):
        return None
    outputs, inputs = weight.numbers.shape
    packed = torch.ops.onednn.qlinear_prepack(weight.numbers, None)
    if torch.ops.mkldnn._nbytes(packed) < outputs * inputs:
        return None
    block = (ctypes.c_int8 * (outputs * inputs)).from_address(torch.ops.mkldnn.data_ptr(packed))
    columns = torch.frombuffer(block, dtype=torch.int8).view(inputs, outputs)
    if not torch.equal(columns.t(), weight.numbers):
        return None
    return ColumnsWeight(packed, columns, weight.scales, weight.sums, torch.zeros(1, dtype=torch.int64))


def seven_bit_bytes(outputs: int, inputs: int, looked_up: bool) -> int:
    """The memory of a weight, with what stands beside its numbers."""
    return outputs * (inputs + (20 if for_fbgemm(inputs, looked_up) else 8))


def seven_bits_are_exact() -> bool:
    """Whether this processor adds the products of seven bits, and this PyTorch has them."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    whole = torch.full((PROBED, PROBED), LARGEST, dtype=torch.int8)
    weight = columns_weight(Int8Weight(whole, torch.ones(PROBED, 1), torch.zeros(PROBED)))
    if weight is None:
        return False
    products = weight.multiplier()(torch.full((4, PROBED), float(SEVEN_BITS)))
    return bool((products == SEVEN_BITS * LARGEST * PROBED).all())
