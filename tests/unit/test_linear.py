"""Linear layers by oneDNN: the same numbers, whichever library a product goes to, and nothing left behind."""

import pytest
import torch
import torch.nn as nn

from nar_plugins.modules.linear import LARGE_WEIGHT, SMALL, fast_linear, onednn_threshold


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("rows", [1, 4 * SMALL // (32 * 48) - 1, 4 * SMALL // (32 * 48) + 1])
def test_small_and_large_products_are_those_of_the_layer(rows, capability, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer = nn.Linear(32, 48)
    x = torch.randn(1, rows, 32)
    seen = []
    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: seen.append(1) or real(*args))
    with torch.no_grad():
        wanted = layer(x)
        with fast_linear([layer], torch.float32):
            found = layer(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    usable = torch.backends.mkldnn.is_available() and capability == "AVX512"  # MKL is as fast without
    assert len(seen) == int(usable and x.numel() * 48 >= 4 * SMALL)  # a small product is not worth oneDNN's overhead
    assert "forward" not in vars(layer)


@pytest.fixture
def avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("PyTorch without oneDNN")


def test_a_small_product_looks_up_nothing(avx512, monkeypatch):
    """Python's way around PyTorch's layer must not cost a small model what oneDNN cannot give it."""
    layer, x = nn.Linear(8, 8), torch.randn(1, 8)
    with torch.no_grad(), fast_linear([layer, layer], torch.float32):
        looked_up = []
        monkeypatch.setattr(nn.Module, "__getattr__", lambda self, name: looked_up.append(name))
        layer(x)
    assert not looked_up


def test_weights_of_today_are_used(avx512):
    layer, normed, x = nn.Linear(8, 8), nn.utils.weight_norm(nn.Linear(8, 8)), torch.randn(2, 8)
    with torch.no_grad():
        for _ in range(2):
            with fast_linear([layer, normed], torch.float32):
                found = layer(x), normed(x)
            assert all(torch.equal(f, m(x)) for f, m in zip(found, (layer, normed)))
            layer.weight = nn.Parameter(torch.randn(8, 8))  # trained on, or loaded anew
            normed.weight_g.mul_(2)


def test_a_rescorer_within_a_decoding_leaves_the_outer_choice(avx512):
    layer = nn.Linear(8, 8)
    with fast_linear([layer], torch.float32):
        outer = vars(layer)["forward"]
        with fast_linear([layer], torch.float32):
            assert vars(layer)["forward"] is outer
        assert vars(layer)["forward"] is outer
    assert "forward" not in vars(layer)


def test_a_small_weight_is_left_to_mkl_longer_than_a_large_one():
    assert onednn_threshold(torch.empty(2000, 128)) == 4 * SMALL and onednn_threshold(torch.empty(512, 512)) == SMALL
    assert torch.empty(512, 512).numel() == LARGE_WEIGHT
