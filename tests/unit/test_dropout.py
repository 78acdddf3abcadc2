"""Dropout with 16 bits a number: as often, as large and as reproducible as PyTorch's."""

import pytest
import tiny
import torch
from fairseq.modules import FairseqDropout

from nar_plugins.modules.dropout import FastDropout

MANY = (1000, 1001)  # an odd count: the last draw is used in part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_a_share_is_dropped_and_the_rest_is_scaled(p, dtype):
    torch.manual_seed(1)
    x = torch.ones(MANY, dtype=dtype, requires_grad=True)
    y = FastDropout(p)(x)
    assert y.dtype == dtype and set(y.unique().tolist()) == {0, y.max().item()}
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / y.numel()) ** 0.5)
    columns = (y == 0).double().mean(0)  # the four numbers of one draw are independent, too
    assert (columns - p).abs().max() < 6 * (p * (1 - p) / 1000) ** 0.5
    pairs = ((y[:, :-1] == 0) & (y[:, 1:] == 0)).double().mean().item()
    assert pairs == pytest.approx(p * p, abs=3e-3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_the_seed_decides_and_every_call_draws_anew():
    dropout, x = FastDropout(0.5), torch.ones(MANY)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)


def test_in_place():
    x = torch.ones(MANY)
    assert FastDropout(0.5)(x, inplace=True) is x and (x == 0).any()


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-9])
def test_all_or_nothing(p):
    assert torch.equal(FastDropout(p)(torch.ones(8)), torch.full((8,), float(p != 1)))


def test_decoding_drops_nothing_unless_asked():
    dropout, x = FastDropout(0.5).eval(), torch.ones(MANY)
    assert dropout(x) is x
    dropout.make_generation_fast_("decoder", retain_dropout=True)
    assert (dropout(x) == 0).any()


@pytest.mark.parametrize("arch", ["nat_tiny", "cmlm_tiny", "dag_tiny", "blockwise_tiny", "bang_tiny"])
def test_every_model_has_it(arch):
    criterion = {"bang_tiny": "bang_loss", "blockwise_tiny": "blockwise_loss"}.get(arch, "nar_loss")
    model, _ = tiny.model(arch=arch, criterion=criterion)
    kinds = {type(module) for module in model.modules() if isinstance(module, FairseqDropout)}
    assert kinds == {FastDropout}
