"""The float32 product of a linear layer: the same numbers, whichever library computes it."""

import pytest
import torch
import torch.nn as nn

from nar_plugins.modules import cpu
from nar_plugins.modules import linear as products
from nar_plugins.modules.fast.block_layers import function
from nar_plugins.modules.fast.linear import PreparedLinear
from nar_plugins.modules.linear import LARGE_WEIGHT, SMALL, onednn_threshold, product_by_size


def processor(monkeypatch, capability: str, intel: bool, amd: bool = False) -> None:
    """Let the products take this processor for theirs."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "made_by_intel", lambda: intel)
    monkeypatch.setattr(products, "made_by_amd", lambda: amd)


@pytest.mark.parametrize("intel", [False, True], ids=["other", "intel"])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("rows", [1, SMALL // (32 * 48) - 1, SMALL // (32 * 48) + 1])
def test_small_and_large_products_are_those_of_the_layer(rows, capability, intel, monkeypatch):
    torch.manual_seed(1)
    processor(monkeypatch, capability, intel)
    layer = nn.Linear(32, 48)
    prepared = PreparedLinear(layer._parameters)
    x = torch.randn(1, rows, 32)
    seen = []
    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: seen.append(1) or real(*args))
    with torch.no_grad():
        wanted = layer(x)
        prepared.prepare(torch.float32)
        found = [prepared(x) for _ in range(2)]
    assert all(torch.allclose(each, wanted, atol=1e-5) for each in found)
    # MKL is as fast without, and faster on Intel's
    usable = torch.backends.mkldnn.is_available() and capability == "AVX512" and not intel
    assert len(seen) == 2 * int(usable and x.numel() * 48 >= SMALL)  # a small one is not worth oneDNN's overhead


@pytest.fixture
def avx512(monkeypatch):
    processor(monkeypatch, "AVX512", intel=False)
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("PyTorch without oneDNN")


def test_a_small_product_looks_up_nothing(avx512, monkeypatch):
    """Python's way around PyTorch's layer must not cost a small model what oneDNN cannot give it."""
    layer, x = PreparedLinear(nn.Linear(8, 8)._parameters), torch.randn(1, 8)
    layer.prepare(torch.float32)
    with torch.no_grad():
        looked_up = []
        monkeypatch.setattr(nn.Module, "__getattr__", lambda self, name: looked_up.append(name))
        layer(x)
    assert not looked_up


def test_a_weight_is_reordered_once(avx512, monkeypatch):
    reordered, real = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *args: reordered.append(1) or real(*args))
    for inputs, small in ((500, 1), (512, 0)):
        layer = nn.Linear(inputs, 512)
        del reordered[:]
        with torch.no_grad():
            compute = product_by_size(layer.weight.detach(), layer.bias.detach())
            compute(torch.randn(1, inputs))
            assert len(reordered) == 1 - small  # a large weight has one form for one row and for many
            for rows in (8, 64, 300):
                x = torch.randn(rows, inputs)
                assert torch.allclose(compute(x), layer(x), atol=1e-5)
        assert len(reordered) == 1


@pytest.mark.parametrize("capability, amd", [("AVX2", True), ("AVX2", False), ("AVX512", True), ("DEFAULT", True)])
def test_amds_processors_reorder_large_weights(capability, amd, monkeypatch):
    processor(monkeypatch, capability, intel=not amd, amd=amd)
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("PyTorch without oneDNN")
    reordered, real = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *args: reordered.append(1) or real(*args))
    for inputs in (512, 500):
        layer, x = PreparedLinear(nn.Linear(inputs, 512)._parameters), torch.randn(2, 3, inputs)
        layer.prepare(torch.float32)
        with torch.no_grad():
            assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    assert len(reordered) == int(amd and capability != "DEFAULT")  # the large one of two


def test_drafts_and_verification_read_one_copy_of_a_large_weight(avx512, monkeypatch):
    """Two copies take turns in the cache: drafts then cost more than they bring."""
    reordered, real = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *args: reordered.append(1) or real(*args))
    layer = PreparedLinear(nn.Linear(128, 3000)._parameters)
    layer.prepare(torch.float32)
    with torch.no_grad():
        verifying = function(layer)
        for rows in (1, 8, 100):
            x = torch.randn(rows, 128)
            assert torch.equal(verifying(x), layer(x))
    assert len(reordered) == 1


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
def test_on_intel_a_weight_is_transposed_once(monkeypatch):
    processor(monkeypatch, "AVX512", intel=True)
    copied, real = [], torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: copied.append(tuple(x.shape)) or real(x))
    layer, x = PreparedLinear(nn.Linear(512, 600)._parameters), torch.randn(3, 2, 512)
    layer.prepare(torch.float32)
    with torch.no_grad():
        verifying = function(layer)
        assert not copied  # a layer that is never called has no copy
        for rows in (1, 3):
            assert torch.allclose(layer(x[:rows]), nn.functional.linear(x[:rows], layer.weight, layer.bias), atol=1e-5)
            assert torch.equal(verifying(x[:rows].flatten(0, 1)), layer(x[:rows].flatten(0, 1)))
    assert copied == [(512, 600)]


def test_the_maker_is_that_of_the_first_processor(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A\n\nvendor_id\t: Another\n")
    monkeypatch.setattr(cpu, "CPUINFO", file)
    cpu.cpuinfo.cache_clear()
    try:
        assert cpu.made_by_intel() and cpu.cpuinfo("model name") == "A" and cpu.cpuinfo("flags")
        monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "none")
        cpu.cpuinfo.cache_clear()
        monkeypatch.setattr(cpu.platform, "processor", lambda: "")
        monkeypatch.setattr(cpu.platform, "machine", lambda: "arm64")
        assert not cpu.made_by_intel() and not cpu.made_by_amd() and cpu.cpuinfo("model name") == "arm64"
    finally:
        cpu.cpuinfo.cache_clear()


def test_a_small_weight_is_left_to_mkl_longer_than_a_large_one():
    assert onednn_threshold(torch.empty(2000, 128)) == SMALL and onednn_threshold(torch.empty(512, 512)) == 0
    assert torch.empty(512, 512).numel() == LARGE_WEIGHT
