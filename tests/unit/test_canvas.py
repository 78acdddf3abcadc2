"""Canvases, schedules and candidate lengths, against exact arithmetic and examples worked by hand."""

import decimal
from decimal import Decimal
from fractions import Fraction
from math import floor

import pytest
import torch

from nar_plugins.generators.canvas.lengths import candidate_lengths, gold_lengths
from nar_plugins.generators.canvas.schedule import remask_count
from nar_plugins.models.cmlm import blank_canvas

LENGTHS = torch.arange(1, 201)
PI = Decimal("3.14159265358979323846264338327950288419716939937510")
INF = float("inf")


def cosine(x: Decimal) -> Decimal:
    """cos x to 40 digits, by its series."""
    total, term, k = Decimal(0), Decimal(1), 0
    while abs(term) > Decimal("1e-45"):
        total += term
        k += 2
        term *= -x * x / (k * (k - 1))
    return total


def test_a_blank_canvas_has_masks_up_to_the_length_and_padding_after():
    assert blank_canvas(torch.tensor([2, 4, 1]), 4, 9, 1).tolist() == [[9, 9, 1, 1], [9, 9, 9, 9], [9, 1, 1, 1]]
    assert blank_canvas(torch.tensor([[2], [1]]), 3, 9, 1).tolist() == [[[9, 9, 1]], [[9, 1, 1]]]


@pytest.mark.parametrize("schedule", ["linear", "confidence"])
def test_the_linear_schedule_is_the_exact_floor_of_the_papers_formula(schedule):
    for passes in range(1, 31):
        for done in range(1, passes):
            ratio = 1 - Fraction(done, passes)
            expected = [max(1, floor(n * ratio)) for n in LENGTHS.tolist()]
            assert remask_count(LENGTHS, done, passes, schedule).tolist() == expected, (passes, done)


def test_the_linear_schedule_where_floating_point_is_one_too_low():
    # 180 * (1 - 7/20) = 117 exactly; in floating point it is 116.99999999999999 (spec, A.2.3)
    assert int(remask_count(torch.tensor(180), 7, 20, "linear")) == 117


def test_the_cosine_schedule_is_the_exact_floor_of_maskgits_formula():
    with decimal.localcontext() as context:
        context.prec = 50
        for passes in range(1, 31):
            for done in range(1, passes):
                if 3 * done == 2 * passes:  # cos(pi/3) is 1/2 exactly; no other cosine here is rational (Niven)
                    expected = [max(1, n // 2) for n in LENGTHS.tolist()]
                else:
                    ratio = cosine(PI * done / (2 * passes))
                    expected = [max(1, int(n * ratio)) for n in LENGTHS.tolist()]
                assert remask_count(LENGTHS, done, passes, "cosine").tolist() == expected, (passes, done)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_only_ever_mask_fewer_and_always_one(schedule):
    counts = torch.stack([remask_count(LENGTHS, done, 10, schedule) for done in range(1, 10)])
    assert (counts[1:] <= counts[:-1]).all() and counts.min() == 1
    assert (counts[0] < LENGTHS)[1:].all()  # something is kept as soon as there are two


def lprobs(*rows) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_the_most_probable_lengths_come_best_first():
    lengths, keep = candidate_lengths(lprobs([0, 0.05, 0.1, 0.2, 0.25, 0.4], [0, 0.05, 0.5, 0.3, 0.1, 0.05]), 3)
    assert lengths.tolist() == [[5, 4, 3], [2, 3, 4]]
    assert keep.all()


def test_length_one_is_raised_to_two_and_its_duplicate_dropped_without_replacement():
    lengths, keep = candidate_lengths(lprobs([0, 0.4, 0.3, 0.2, 0.05, 0.05]), 3)
    assert lengths.tolist() == [[2, 2, 3]]
    assert keep.tolist() == [[True, False, True]]  # not [2, 3, 4]: the release does not look further
    lengths, keep = candidate_lengths(lprobs([0, 0.3, 0.4, 0.2, 0.05, 0.05]), 3)
    assert lengths.tolist() == [[2, 2, 3]]
    assert keep.tolist() == [[True, False, True]]


def test_a_longer_shortest_length_makes_more_duplicates():
    lengths, keep = candidate_lengths(lprobs([0, 0.4, 0.3, 0.2, 0.07, 0.03]), 4, shortest=4)
    assert lengths.tolist() == [[4, 4, 4, 4]]
    assert keep.tolist() == [[True, False, False, False]]


def test_a_beam_larger_than_the_classes_takes_all_of_them():
    lengths, keep = candidate_lengths(lprobs([0, 0.1, 0.2, 0.3, 0.25, 0.15]), 10)
    assert lengths.tolist() == [[3, 4, 2, 5, 2]]  # 1, the last, is raised
    assert keep.tolist() == [[True, True, True, True, False]]


def test_the_length_zero_is_never_chosen():
    lengths, keep = candidate_lengths(torch.tensor([[-INF, -1.0, -2.0]]), 5, shortest=1)
    assert lengths.tolist() == [[1, 2]] and keep.all()


def test_the_longest_length_caps_each_sentence_by_itself():
    probabilities = [0, 0.05, 0.1, 0.2, 0.25, 0.4]
    lengths, keep = candidate_lengths(lprobs(probabilities, probabilities), 3, longest=torch.tensor([5, 3]))
    assert lengths[0].tolist() == [5, 4, 3]
    assert lengths[1].tolist() == [3, 2, 2]  # 3, 2, and 1 raised
    assert keep.tolist() == [[True] * 3, [True, True, False]]


def test_columns_without_probability_are_dropped():
    lengths, keep = candidate_lengths(lprobs([0, 0.05, 0.1, 0.2, 0.25, 0.4]), 4, longest=torch.tensor([2]))
    assert keep.tolist() == [[True, False, False, False]]
    assert lengths.tolist() == [[2, 2, 2, 2]]


def test_a_cap_below_the_shortest_length_gives_way_to_it():
    lengths, keep = candidate_lengths(lprobs([0, 0.05, 0.1, 0.2, 0.25, 0.4]), 2, longest=torch.tensor([0]))
    assert lengths[0][keep[0]].tolist() == [2]


def test_gold_lengths_are_a_window_around_the_references():
    lengths, keep = gold_lengths(torch.tensor([5, 7]), 5, 100)
    assert lengths.tolist() == [[3, 4, 5, 6, 7], [5, 6, 7, 8, 9]] and keep.all()
    assert gold_lengths(torch.tensor([5]), 4, 100)[0].tolist() == [[4, 5, 6, 7]]  # an even beam leans to the right
    assert gold_lengths(torch.tensor([5]), 1, 100)[0].tolist() == [[5]]


def test_gold_lengths_are_raised_to_two_and_stay_within_the_classes():
    lengths, keep = gold_lengths(torch.tensor([2, 7]), 5, 8)
    assert lengths.tolist() == [[2, 2, 2, 3, 4], [5, 6, 7, 7, 7]]
    assert keep.tolist() == [[True, False, False, True, True], [True, True, True, False, False]]
