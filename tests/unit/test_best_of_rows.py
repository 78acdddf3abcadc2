"""The best symbol of every row: the form in blocks against the plain one."""

import math

import pytest
import torch

from nar_plugins.modules import best_of_rows as module
from nar_plugins.modules.best_of_rows import best_of_rows, in_blocks


def plain(logits, banned):
    lprobs = logits.double().log_softmax(-1)
    lprobs[:, banned] = -math.inf
    best, symbols = lprobs.max(-1)
    return symbols, best


@pytest.mark.parametrize("size", [130, 256, 300])
@pytest.mark.parametrize("banned", [[0, 1, 5], [299]])
def test_blocks_give_the_same(size, banned):
    torch.manual_seed(1)
    banned = [symbol for symbol in banned if symbol < size]
    logits = torch.randn(40, size) * 5
    logits[0, banned] = 90.0  # what is banned has nearly all of the probability
    logits[1, [7, 129]] = 50.0  # of equals the first
    logits[2, size - 1] = 40.0
    wanted, lprobs = plain(logits.clone(), banned)
    for form in (in_blocks, best_of_rows):
        symbols, found = form(logits.clone(), banned)
        assert torch.equal(symbols, wanted) and symbols[1] == 7
        torch.testing.assert_close(found.double(), lprobs, rtol=1e-5, atol=1e-4)


def test_nan_stays_nan():
    logits = torch.randn(3, 300)
    logits[1, 150] = float("nan")
    assert in_blocks(logits, [0])[1].isnan().tolist() == [False, True, False]


def test_the_form_depends_on_the_vocabulary_and_not_on_the_rows(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "in_blocks", lambda logits, banned: calls.append(logits.shape))
    best_of_rows(torch.zeros(1, module.LARGE), [0])
    best_of_rows(torch.zeros(500, module.LARGE - 1), [0])
    assert calls == [(1, module.LARGE)]
