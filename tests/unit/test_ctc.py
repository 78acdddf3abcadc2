"""CTC against all paths, counted one by one."""

import itertools
import math

import pytest
import torch

from nar_plugins.modules.ctc import (
    best_alignment,
    collapse,
    ctc_loss,
    needed,
    own_logits,
    prefix_beam_search,
    projected_ctc_loss,
)

BLANK = 3


def text(path):
    """What a path says: repetitions once, blanks not."""
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def paths(lprobs):
    """Every path of a canvas (C, V) with its log-probability."""
    for path in itertools.product(range(lprobs.size(1)), repeat=lprobs.size(0)):
        yield path, sum(float(lprobs[t, v]) for t, v in enumerate(path))


def random_lprobs(*shape, seed=1):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).double().log_softmax(-1)


def target_batch(*targets):
    width = max(map(len, targets))
    batch = torch.full((len(targets), width), 9)
    for row, target in zip(batch, targets):
        row[: len(target)] = torch.tensor(target)
    return batch, batch.ne(9)


def test_needed_counts_a_blank_between_equal_neighbours():
    target, real = target_batch([0, 1, 2], [0, 0, 0], [1], [2, 2, 1, 1])
    assert needed(target, real).tolist() == [3, 5, 1, 6]


def test_loss_is_that_of_all_paths():
    lprobs = random_lprobs(2, 5, 4)
    target, real = target_batch([0, 1], [2, 2, 1])
    lengths = torch.tensor([4, 5])
    part = ctc_loss(lprobs, lengths, target.masked_fill(~real, 0), real, BLANK)
    wanted = 0.0
    for row, (length, goal) in enumerate(zip(lengths.tolist(), ((0, 1), (2, 2, 1)))):
        wanted -= math.log(sum(math.exp(p) for path, p in paths(lprobs[row, :length]) if text(path) == goal))
    assert float(part.loss) == pytest.approx(wanted, rel=1e-6)
    assert int(part.count) == 5 and int(part.skipped) == 0


def test_the_loss_without_all_logits_is_the_same_and_so_are_its_gradients():
    """Repeated tokens, a target that is too long, padding, a target that holds the blank's neighbour in the table."""
    torch.manual_seed(1)
    projection = torch.nn.Linear(6, 11, bias=False).double()
    features = (2 * torch.randn(4, 7, 6)).double().requires_grad_()
    target, real = target_batch([0, 1, 0, 0], [2, 2, 4], [5] * 6, [10])
    target, lengths = target.masked_fill(~real, 9), torch.tensor([7, 5, 7, 3])
    positions = torch.arange(7) < lengths.unsqueeze(1)
    found = projected_ctc_loss(projection, features, positions, target, real, BLANK)
    plain = ctc_loss(projection(features).log_softmax(-1), lengths, target, real, BLANK)
    assert int(found.skipped) == int(plain.skipped) == 1 and int(found.count) == int(plain.count) == 8
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.nll, plain.nll)
    over = features, projection.weight
    for mine, wanted in zip(torch.autograd.grad(found.loss, over), torch.autograd.grad(plain.loss, over)):
        torch.testing.assert_close(mine, wanted)


def test_too_long_a_target_is_skipped_counted_and_never_nan():
    logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    target, real = target_batch([0, 1], [0, 0, 0], [0, 1, 2, 0, 1])
    part = ctc_loss(logits.log_softmax(-1), torch.tensor([4, 4, 4]), target.masked_fill(~real, 0), real, BLANK)
    alone = ctc_loss(logits[:1].log_softmax(-1), torch.tensor([4]), target[:1, :2], real[:1, :2], BLANK)
    assert int(part.skipped) == 2 and int(part.count) == 2
    assert float(part.loss) == pytest.approx(float(alone.loss))
    part.loss.backward()
    assert (
        logits.grad.isfinite().all()
        and float(logits.grad[1:].abs().sum()) == 0
        and float(logits.grad[0].abs().sum()) > 0
    )


def own_of(logits, target, real):
    """``own_logits`` of logits (B, C, V)."""
    projection = torch.nn.Linear(logits.size(2), logits.size(2), bias=False, dtype=logits.dtype)
    torch.nn.init.eye_(projection.weight)
    return own_logits(projection, logits, target, real, BLANK).detach()


@pytest.mark.parametrize("seed", range(6))
def test_best_alignment_is_the_best_of_all_paths(seed):
    lprobs = random_lprobs(4, 6, 4, seed=seed)
    goals, lengths = [(0, 1), (2, 2, 1), (1,), (0, 1, 0)], [6, 5, 4, 3]
    target, real = target_batch(*map(list, goals))
    logits = own_of(lprobs + torch.randn(4, 6, 1), target, real)
    found = best_alignment(logits, torch.tensor(lengths), target, real, BLANK)
    for row, (goal, length) in enumerate(zip(goals, lengths)):
        best = max((p, path) for path, p in paths(lprobs[row, :length]) if text(path) == goal)[1]
        assert tuple(found[row, :length].tolist()) == best
        assert (found[row, length:] == BLANK).all()


def test_best_alignment_where_there_is_none_is_blank():
    target, real = target_batch([0, 0, 0], [1])
    logits = own_of(random_lprobs(2, 4, 4), target, real)
    found = best_alignment(logits, torch.tensor([4, 4]), target, real, BLANK)
    assert (found[0] == BLANK).all() and text(found[1].tolist()) == (1,)


def test_collapse():
    path = torch.tensor([[0, 0, BLANK, 0, 1, 1, BLANK], [BLANK] * 7, [2, 2, 2, 1, 0, 0, 0]])
    kept = collapse(path, torch.tensor([7, 7, 4]), BLANK)
    for row, length in zip(range(3), (7, 7, 4)):
        assert tuple(path[row][kept[row]].tolist()) == text(path[row, :length].tolist())


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_prefix_beam_finds_the_best_outputs_over_all_paths(seed):
    lprobs, lengths, beam = random_lprobs(3, 5, 4, seed=seed), torch.tensor([5, 3, 1]), 400
    tokens, sizes, scores = prefix_beam_search(lprobs, lengths, BLANK, beam)
    for row, length in enumerate(lengths.tolist()):
        sums = {}
        for path, p in paths(lprobs[row, :length]):
            sums[text(path)] = sums.get(text(path), 0.0) + math.exp(p)
        best = sorted(sums.items(), key=lambda item: -item[1])
        found = [tuple(tokens[row, k, : sizes[row, k]].tolist()) for k in range(beam) if scores[row, k] > -math.inf]
        assert len(found) == len(set(found)) == len(sums)
        assert found[:5] == [output for output, _ in best[:5]]
        for k, (_, probability) in enumerate(best[:20]):
            assert float(scores[row, k]) == pytest.approx(math.log(probability), abs=1e-9)


def test_a_narrow_beam_is_ordered_and_merges_what_is_equal():
    tokens, sizes, scores = prefix_beam_search(random_lprobs(2, 8, 4), torch.tensor([8, 6]), BLANK, 3)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for row in range(2):
        assert len({tuple(tokens[row, k, : sizes[row, k]].tolist()) for k in range(3)}) == 3
