"""Source copies against the definition, written out in Python."""

import math

import pytest
import torch

from nar_plugins.modules import source_copy
from nar_plugins.modules.source_copy import (
    average,
    bounded,
    candidate_draws,
    distinct,
    from_fertilities,
    sample,
    soft_weights,
)


def rows(copy):
    """The copied source positions of every row, without padding."""
    return [index[~padding].tolist() for index, padding in zip(copy.index, copy.padding)]


@pytest.mark.parametrize(
    "fertilities", [[[2, 0, 1], [0, 0, 1]], [[1, 1, 1]], [[0, 3, 1]], [[60, 0, 1]], [[1]], [[2, 1, 0], [1, 2, 4]]]
)
def test_every_token_as_often_as_its_fertility(fertilities):
    wanted = [[j for j, f in enumerate(row) for _ in range(f)] for row in fertilities]
    copy = from_fertilities(torch.tensor(fertilities))
    assert rows(copy) == wanted
    assert copy.index.max() < len(fertilities[0])  # padding points to a real place, too


def test_a_given_width_pads():
    copy = from_fertilities(torch.tensor([[1, 1]]), width=5)
    assert copy.padding.tolist() == [[False, False, True, True, True]]


def test_nothing_at_all_is_padding():
    copy = from_fertilities(torch.tensor([[0, 0], [1, 1]]))
    assert rows(copy) == [[], [0, 1]]


@pytest.mark.parametrize("source", [1, 2, 3, 7])
def test_uniform_copy_is_the_rounded_line(source):
    for target in range(1, 20):
        copy = source_copy.uniformly(torch.tensor([source]), torch.tensor([target]))
        line = [math.floor(t * (source - 1) / (target - 1) + 0.5) if target > 1 else source - 1 for t in range(target)]
        assert rows(copy) == [line]


def test_uniform_copy_of_a_ragged_batch_is_that_of_its_rows():
    sources, lengths = torch.tensor([5, 2, 9]), torch.tensor([3, 8, 1])
    together = rows(source_copy.uniformly(sources, lengths))
    alone = [rows(source_copy.uniformly(sources[i : i + 1], lengths[i : i + 1]))[0] for i in range(3)]
    assert together == alone


def test_upsampled():
    assert rows(source_copy.upsampled(torch.tensor([3, 1]), 2)) == [[0, 0, 1, 1, 2, 2], [0, 0]]


def test_soft_weights_from_the_definition():
    sources, lengths = torch.tensor([3, 2]), torch.tensor([5, 2])
    weights = soft_weights(sources, lengths, 3, 5)
    for row, (s, n) in enumerate(zip(sources.tolist(), lengths.tolist())):
        for t in range(n):
            raw = [math.exp(-((j - t * s / n) ** 2) / 0.3) for j in range(s)] + [0.0] * (3 - s)
            torch.testing.assert_close(weights[row, t], torch.tensor([x / sum(raw) for x in raw]), atol=1e-5, rtol=1e-5)


def test_bounded_keeps_the_end_and_drops_what_is_too_long():
    sources, longest = torch.tensor([4, 4, 1, 3]), torch.tensor([50, 6, 50, 50])
    raw = torch.tensor([[0, 0, 0, 0], [3, 2, 9, 7], [5, 5, 5, 5], [2, 49, 3, 8]])
    # nothing: only </s>; 3 + 2 fill the five places before </s>; only </s>; </s> is one, padding none
    assert bounded(raw, sources, longest).tolist() == [[0, 0, 0, 1], [3, 2, 0, 1], [1, 0, 0, 0], [2, 0, 1, 0]]


def test_a_token_beyond_the_bound_takes_all_after_it_along():
    # the official code's rule: from where the sum is too large on, nothing
    assert bounded(torch.tensor([[4, 1, 1, 0]]), torch.tensor([4]), torch.tensor([4])).tolist() == [[0, 0, 0, 1]]


def test_average_is_the_rounded_expectation():
    probabilities = torch.tensor([[0.5, 0.1, 0.4], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8]])
    assert average(probabilities).tolist() == [1, 2, 0, 2]


def test_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.2, 0.5, 0.3])
    draws = (torch.arange(1000) + 0.5) / 1000
    counts = sample(probabilities.expand(1000, 3), draws).bincount(minlength=3)
    assert counts.tolist() == [200, 500, 300]
    assert int(sample(torch.tensor([[0.3, 0.3, 0.4]]), torch.tensor([0.999999999]))) == 2  # never beyond the last class


def test_draws_depend_on_the_tokens_and_nothing_else():
    short, long = torch.tensor([[5, 6, 2]]), torch.tensor([[7, 8, 9, 4, 2]])
    batch = torch.tensor([[5, 6, 2, 1, 1], [7, 8, 9, 4, 2]])
    together = candidate_draws(batch, 1, 3, 4)
    assert torch.equal(together[0, :, :3], candidate_draws(short, 1, 3, 4)[0])
    assert torch.equal(together[1], candidate_draws(long, 1, 3, 4)[0])
    assert not torch.equal(candidate_draws(short, 1, 4, 4), candidate_draws(short, 1, 3, 4))  # the seed counts
    assert not torch.equal(
        candidate_draws(torch.tensor([[6, 5, 2]]), 1, 3, 4), candidate_draws(short, 1, 3, 4)
    )  # and the order
    assert len(together.flatten().unique()) == together.numel()


def test_more_candidates_keep_the_first_ones():
    source = torch.tensor([[5, 6, 2], [7, 2, 1]])
    assert torch.equal(candidate_draws(source, 1, 3, 8)[:, :3], candidate_draws(source, 1, 3, 3))


def test_distinct_marks_the_first_of_equal_candidates():
    rows_ = torch.tensor([[[1, 2], [1, 2], [2, 1], [1, 2]], [[0, 0], [1, 0], [0, 1], [1, 1]]])
    assert distinct(rows_).tolist() == [[True, False, True, False], [True] * 4]
