"""The fused loss against the plain one: values, gradients, types."""
import pytest
import torch
import torch.nn as nn

from nar_plugins.modules.fused_loss import fused_word_loss
from nar_plugins.modules.losses import masked_word_loss


def made(rows=150, dim=8, words=30, dtype=torch.float64):
    """More rows than are made at a time."""
    torch.manual_seed(1)
    projection = nn.Linear(dim, words, bias=False).to(dtype)
    features = torch.randn(rows, dim, dtype=dtype, requires_grad=True)
    return projection, features, torch.randint(0, words, (rows,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [0, 1, 64, 150])
def test_it_is_the_plain_loss(smoothing, rows):
    projection, features, words = made(rows)
    plain = masked_word_loss(projection(features), words, smoothing)
    wanted = torch.autograd.grad(3 * plain.loss, (features, projection.weight))
    found = fused_word_loss(projection, features, words, smoothing)
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.nll.sum(), plain.nll)
    assert found.correct.equal(projection(features).argmax(1).eq(words))
    for one, other in zip(torch.autograd.grad(3 * found.loss, (features, projection.weight)), wanted):
        torch.testing.assert_close(one, other)


def test_weights():
    projection, features, words = made()
    weights = torch.rand(150, dtype=torch.float64)
    found = fused_word_loss(projection, features, words, 0.1, weights)
    single = [weight * masked_word_loss(projection(features[i : i + 1]), words[i : i + 1], 0.1).loss
              for i, weight in enumerate(weights)]  # fmt: skip
    torch.testing.assert_close(found.loss, torch.stack(single).sum())
    wanted = torch.autograd.grad(torch.stack(single).sum(), (features, projection.weight))
    for one, other in zip(torch.autograd.grad(found.loss, (features, projection.weight)), wanted):
        torch.testing.assert_close(one, other)


def test_without_gradients_none_are_made():
    projection, features, words = made()
    with torch.no_grad():
        assert not fused_word_loss(projection, features, words, 0.1).loss.requires_grad
    projection.requires_grad_(False)
    fused_word_loss(projection, features, words, 0.1).loss.backward()
    assert projection.weight.grad is None and features.grad is not None


def test_autocast():
    """The products are rounded as the plain way rounds them; sums over rows in another order."""
    projection, features, words = made(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = masked_word_loss(projection(features), words, 0.1).loss
        found = fused_word_loss(projection, features, words, 0.1).loss
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
    wanted = torch.autograd.grad(plain, (features, projection.weight))
    for one, other in zip(torch.autograd.grad(found, (features, projection.weight)), wanted):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()
