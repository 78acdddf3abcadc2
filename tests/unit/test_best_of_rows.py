"""The best symbol of every row: the form in blocks against the plain one."""

import math

import pytest
import torch

from nar_plugins.modules import best_of_rows as module
from nar_plugins.modules.best_of_rows import best_of_rows, first_of_two, in_blocks, max_of_rows, most_probable

largest = module.largest_of_rows


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
        symbols, found = form(logits.clone(), torch.tensor(banned, dtype=torch.long))
        assert torch.equal(symbols, wanted) and symbols[1] == 7
        torch.testing.assert_close(found.double(), lprobs, rtol=1e-5, atol=1e-4)


def test_nan_stays_nan():
    logits = torch.randn(3, 300)
    logits[1, 150] = float("nan")
    assert in_blocks(logits, torch.tensor([0]))[1].isnan().tolist() == [False, True, False]


def test_the_form_depends_on_the_vocabulary_and_not_on_the_rows(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "in_blocks", lambda logits, banned: calls.append(logits.shape))
    best_of_rows(torch.zeros(1, module.LARGE), torch.tensor([0]))
    best_of_rows(torch.zeros(500, module.LARGE - 1), torch.tensor([0]))
    assert calls == [(1, module.LARGE)]


@pytest.mark.parametrize("size", [1500, 1536, 1601])
def test_the_first_of_two_is_that_of_topk(size, monkeypatch):
    torch.manual_seed(1)
    scores = torch.randn(4, 12, size).log_softmax(-1)
    assert scores.numel() >= module.NUMBERS
    scores[0, 1, size - 1] = 1.0
    forms = []
    monkeypatch.setattr(module, "largest_of_rows", lambda rows: forms.append(len(rows)) or largest(rows))
    for ties in ([], [3, 40], [3, 700], [700, size - 1], [size - 2, size - 1], list(range(size))):
        tied = scores.clone()
        tied[1, 2, ties] = 2.0
        best, symbols = first_of_two(tied)
        wanted = tied.topk(2)
        assert torch.equal(best, wanted.values[..., 0]) and torch.equal(symbols, wanted.indices[..., 0])
    assert forms == [48] * 6
    impossible = torch.full_like(scores, -math.inf)  # as where the model's output is NaN
    assert torch.equal(first_of_two(impossible)[1], impossible.topk(2).indices[..., 0])


def test_the_first_of_two_looks_at_ties(monkeypatch):
    """Were a tie not seen, the first would be taken, which is not always ``topk``'s."""
    torch.manual_seed(1)
    scores = torch.randn(48, 1600)
    scores[:, [10, 800, 1599]] = 9.0
    assert not torch.equal(largest(scores)[1], scores.topk(2).indices[:, 0])
    assert torch.equal(first_of_two(scores)[1], scores.topk(2).indices[:, 0])


@pytest.mark.parametrize("size", [40, 1600])
def test_the_most_probable(size):
    torch.manual_seed(1)
    projection = torch.nn.Linear(8, size)
    for shape in ((3, 50), (150,), (1, 1), (0,)):
        features = torch.randn(*shape, 8)
        symbols = most_probable(projection, features)
        assert symbols.dtype == torch.int64
        assert torch.equal(symbols, projection(features).argmax(-1))


@pytest.mark.parametrize("size", [40, 1600])
def test_the_best_is_that_of_max(size):
    scores = torch.randn(60, 2, size, generator=torch.Generator().manual_seed(1))
    found, symbols = max_of_rows(scores)
    wanted = scores.max(-1)
    assert torch.equal(found, wanted.values) and torch.equal(symbols, wanted.indices)
