"""Linear layers by oneDNN: the same numbers, whichever library a product goes to, and nothing left behind."""
import pytest
import torch
import torch.nn as nn

from nar_plugins.modules.linear import SMALL, fast_linear


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("rows", [1, SMALL // (32 * 48) - 1, SMALL // (32 * 48) + 1])
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
    assert len(seen) == int(usable and x.numel() * 48 >= SMALL)  # a small product is not worth oneDNN's overhead
    assert "forward" not in vars(layer)
