"""Int8 without VNNI: inputs of seven bits, two kernels with the same numbers, and what happens without them."""

import pytest
import torch
import torch.nn.functional as F

from nar_plugins.modules.fast import seven_bits
from nar_plugins.modules.fast.forms import int8_bytes, int8_lacks, pack
from nar_plugins.modules.fast.int8 import (
    LARGEST,
    SEVEN_BITS,
    Int8Weight,
    as_bytes,
    int8_product,
    quantise,
    quantise_weight,
)
from nar_plugins.modules.fast.seven_bits import (
    ColumnsWeight,
    FbgemmWeight,
    columns_weight,
    fbgemm_weight,
    seven_bits_are_exact,
)

CPU = torch.device("cpu")
VNNI = torch.cpu._is_vnni_supported()  # of this processor
needs_kernels = pytest.mark.skipif(VNNI or not seven_bits_are_exact(), reason="this processor has VNNI, or no AVX")
LARGEST_PAIR = 2 * SEVEN_BITS * LARGEST  # in 16 bits


@pytest.fixture(autouse=True)
def without_vnni(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)


def of_whole_numbers(x, weight: Int8Weight, bias):
    """The product in float64, a number at a time in meaning."""
    x, low = x.double(), x.double().amin(-1, keepdim=True)
    scales = (x.amax(-1, keepdim=True) - low) / 128
    numbers, rows = ((x - low) / scales.clamp(min=1e-30)).round(), (weight.numbers * weight.scales).double()
    return (numbers * scales + low) @ rows.t() + bias.double()


def test_two_products_of_seven_bits_fit_sixteen():
    assert LARGEST_PAIR <= torch.iinfo(torch.int16).max < 2 * 255 * 127
    rows = quantise(torch.randn(50, 64))
    assert (
        rows.numbers.dtype == torch.float32
        and as_bytes(rows.numbers).max() == 128 == as_bytes(rows.numbers).amax(1).min()
    )


def test_a_number_is_rounded_once():
    x = torch.randn(3, 20, 64) * torch.rand(3, 20, 1) * 100
    rows = quantise(x)
    again = rows.numbers.round() * rows.scales + rows.offsets
    steps = (again.view_as(x) - x).abs() / rows.scales.view(3, 20, 1)
    assert steps.max() < 0.501 and rows.shape == (3, 20)


def test_rows_of_one_value_and_no_rows_are_exact():
    weight = quantise_weight(torch.randn(40, 512))
    compute, rows = int8_product(pack(weight), None), (weight.numbers * weight.scales).sum(1)
    found = compute(torch.tensor([[0.0], [3.0], [-1e-20], [1e6]]).expand(4, 512))
    torch.testing.assert_close(found, torch.tensor([[0.0], [3.0], [-1e-20], [1e6]]) * rows, rtol=1e-3, atol=1e-4)
    assert compute(torch.empty(0, 512)).shape == (0, 40)


@needs_kernels
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 512, 512), (7, 64, 48), (33, 1024, 130), (300, 300, 1000)])
@pytest.mark.parametrize("looked_up", [False, True])
def test_both_kernels_have_the_numbers_of_rows_bit_for_bit(rows, inputs, outputs, looked_up):
    torch.manual_seed(1)
    weight, bias, x = quantise_weight(torch.randn(outputs, inputs)), torch.randn(outputs), torch.randn(rows, inputs)
    packed = pack(weight, looked_up)
    assert type(packed) is (ColumnsWeight if looked_up or inputs % 512 else FbgemmWeight)
    found = int8_product(packed, bias)(x)
    assert torch.equal(found, int8_product(weight, bias)(x))
    wanted, exact = of_whole_numbers(x, weight, bias), F.linear(x, weight.numbers * weight.scales, bias)
    assert ((found - wanted).abs() < 1e-4 * wanted.abs().mean()).float().mean() > 0.9  # but for numbers halfway
    assert 1e-3 < (found - exact).norm() / exact.norm() < 0.02
    if type(packed) is ColumnsWeight:
        indices = torch.randint(outputs, (3, 7))
        assert torch.equal(packed.rows(indices), weight.rows(indices))


@needs_kernels
def test_the_largest_numbers_do_not_overflow():
    numbers = torch.full((64, 512), 127, dtype=torch.int8)
    numbers[1::2] = -127
    weight = Int8Weight(numbers, torch.ones(64, 1), numbers.sum(1).float())
    for packed in (columns_weight(weight), fbgemm_weight(weight)):
        found = packed.multiplier()(torch.full((5, 512), 128.0))
        assert found.abs().unique().tolist() == [128 * 127 * 512]


@needs_kernels
@pytest.mark.parametrize("outputs, inputs, looked_up", [(1000, 128, False), (1000, 512, True), (1000, 512, False)])
def test_a_weight_takes_a_quarter_of_its_memory(outputs, inputs, looked_up):
    taken = int8_bytes(torch.empty(outputs, inputs), looked_up)
    packed = pack(quantise_weight(torch.randn(outputs, inputs)), looked_up)
    if type(packed) is ColumnsWeight:
        parts = (packed.scales, packed.sums)
        assert taken == torch.ops.mkldnn._nbytes(packed.packed) + sum(4 * part.numel() for part in parts)
    assert outputs * inputs < taken < 1.1 * outputs * inputs


@needs_kernels
def test_another_engine_of_pytorchs_leaves_fbgemm_out(monkeypatch):
    weight = quantise_weight(torch.randn(64, 512))
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        assert type(pack(weight)) is ColumnsWeight
    finally:
        torch.backends.quantized.engine = engine
    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", None)
    monkeypatch.delattr(torch, "_make_per_channel_quantized_tensor")
    assert type(pack(weight)) is ColumnsWeight


def test_without_a_kernel_there_is_no_int8(monkeypatch):
    weight = quantise_weight(torch.randn(64, 512))
    monkeypatch.setattr(seven_bits, "columns_weight", lambda weight: None)
    monkeypatch.setattr(seven_bits, "fbgemm_weight", lambda weight: None)
    assert pack(weight) is weight
    assert int8_lacks(CPU).startswith("this processor has no VNNI instructions, and")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert int8_lacks(CPU).startswith("this processor has no VNNI instructions, and")


@needs_kernels
def test_a_kernel_that_overflows_is_refused(monkeypatch):
    monkeypatch.setattr(seven_bits.ColumnsWeight, "multiplier", lambda self: lambda numbers: torch.zeros(4, 64))
    assert int8_lacks(CPU).startswith("this processor has no VNNI instructions, and")
