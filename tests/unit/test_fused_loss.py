"""The fused loss against the plain one: values, gradients, types."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from nar_plugins.modules.fused_loss import SoftTargets, fused_token_loss


def plain_token_loss(logits, words, label_smoothing):
    """The slow twin: logits (M, V), words (M,) int64 -> the summed loss and negative log-likelihood."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    normaliser = logits.logsumexp(-1)
    nll = (normaliser - logits.gather(-1, words.unsqueeze(-1)).squeeze(-1)).sum()
    smooth = (normaliser - logits.mean(-1)).sum()
    return SimpleNamespace(loss=(1 - label_smoothing) * nll + label_smoothing * smooth, nll=nll)


def fused(*given, **more):
    """The summed loss; the negative log-likelihoods and hits (M,)."""
    losses, nll, correct = fused_token_loss(*given, **more)
    return SimpleNamespace(loss=losses.sum(), losses=losses, nll=nll, correct=correct)


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
    plain = plain_token_loss(projection(features), words, smoothing)
    wanted = torch.autograd.grad(3 * plain.loss, (features, projection.weight))
    found = fused(projection, features, words, smoothing)
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.nll.sum(), plain.nll)
    assert found.correct.equal(projection(features).argmax(1).eq(words))
    for one, other in zip(torch.autograd.grad(3 * found.loss, (features, projection.weight)), wanted):
        torch.testing.assert_close(one, other)


def test_weights():
    projection, features, words = made()
    weights = torch.rand(150, dtype=torch.float64)
    found = fused(projection, features, words, 0.1, weights)
    single = [
        weight * plain_token_loss(projection(features[i : i + 1]), words[i : i + 1], 0.1).loss
        for i, weight in enumerate(weights)
    ]
    torch.testing.assert_close(found.loss, torch.stack(single).sum())
    wanted = torch.autograd.grad(torch.stack(single).sum(), (features, projection.weight))
    for one, other in zip(torch.autograd.grad(found.loss, (features, projection.weight)), wanted):
        torch.testing.assert_close(one, other)


def test_without_gradients_none_are_made(monkeypatch):
    projection, features, words = made()
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", None)  # what the gradients would be summed in
        patch.setattr(torch, "empty_like", None)
        assert not fused(projection, features, words, 0.1).loss.requires_grad
    projection.requires_grad_(False)
    fused(projection, features, words, 0.1).loss.backward()
    assert projection.weight.grad is None and features.grad is not None


def test_autocast():
    """The products are rounded as the plain way rounds them; sums over rows in another order."""
    projection, features, words = made(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_token_loss(projection(features), words, 0.1).loss
        found = fused(projection, features, words, 0.1).loss
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
    wanted = torch.autograd.grad(plain, (features, projection.weight))
    for one, other in zip(torch.autograd.grad(found, (features, projection.weight)), wanted):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def of_logits(logits, words, label_smoothing):
    """The fused loss of given logits (M, V)."""
    projection = nn.Linear(logits.size(1), logits.size(1), bias=False).to(logits.dtype)
    with torch.no_grad():
        projection.weight.copy_(torch.eye(logits.size(1)))
    return fused(projection, logits, words, label_smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_smoothing_is_over_the_whole_vocabulary(smoothing):
    torch.manual_seed(1)
    logits, words = torch.randn(7, 11, dtype=torch.float64), torch.randint(11, (7,))
    nll = loss = 0.0
    for row, word in zip(logits.tolist(), words.tolist()):
        normaliser = math.log(sum(math.exp(x) for x in row))
        nll -= row[word] - normaliser
        loss -= (1 - smoothing) * (row[word] - normaliser) + smoothing * sum(x - normaliser for x in row) / 11
    part = of_logits(logits, words, smoothing)
    assert float(part.nll.sum()) == pytest.approx(nll, rel=1e-6)
    assert float(part.loss) == pytest.approx(loss, rel=1e-6)


def test_a_certain_right_prediction_costs_nothing_and_no_prediction_counts_nothing():
    assert float(of_logits(torch.tensor([[0.0, 1000.0, 0.0]]), torch.tensor([1]), 0.0).loss) == 0
    none = of_logits(torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.int64), 0.1)
    assert (float(none.loss), none.nll.numel()) == (0, 0)
    none.loss.backward()


def test_the_loss_of_half_precision_is_summed_in_single():
    # 4096 equal rows of two classes: log 2 each; in half precision the sum would stop at 2048
    part = of_logits(torch.zeros(4096, 2, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.int64), 0.0)
    assert float(part.loss) == pytest.approx(4096 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("share, temperature, smoothing", [(1.0, 1.0, 0.1), (0.4, 2.0, 0.1), (0.7, 0.5, 0.0)])
def test_distributions_as_targets(share, temperature, smoothing):
    projection, features, words = made()
    aims = torch.randn(150, 30, dtype=torch.float64).softmax(-1)
    pieces = []

    def probabilities(part):
        pieces.append(part)
        return aims[part]

    found = fused(projection, features, words, smoothing, soft=SoftTargets(probabilities, share, temperature))
    assert len(pieces) > 1  # they are never all in memory
    logits = projection(features)
    distilled = -(aims * (logits / temperature).log_softmax(-1)).sum() * temperature**2
    plain = plain_token_loss(logits, words, smoothing)
    wanted = (1 - share) * plain.loss + share * distilled
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.nll.sum(), plain.nll)
    derived = torch.autograd.grad(3 * wanted, (features, projection.weight))
    for one, other in zip(torch.autograd.grad(3 * found.loss, (features, projection.weight)), derived):
        torch.testing.assert_close(one, other)


def test_losses_that_are_summed_in_parts_have_the_gradient_of_the_whole():
    projection, features, words = made()
    wanted = torch.autograd.grad(2 * fused(projection, features, words, 0.1).loss, (features, projection.weight))
    losses = fused(projection, features, words, 0.1).losses
    parts = sum(2 * part.sum() for part in losses.split([100, 0, 50]))
    for one, other in zip(torch.autograd.grad(parts, (features, projection.weight)), wanted):
        torch.testing.assert_close(one, other)


def test_parts_that_count_differently_are_refused():
    projection, features, words = made()
    first, second = fused(projection, features, words, 0.1).losses.split(75)
    with pytest.raises(ValueError, match="must count alike: give what each counts as its weight"):
        (first.sum() + 2 * second.sum()).backward()
