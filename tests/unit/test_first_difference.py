"""benchmarks/first_difference.py finds the first choice in which two decodings differ, and how close it was."""

import numpy as np
import pytest
from conftest import script

pytest.importorskip("sentencepiece")
LENGTHS = [-9.0, -9.0, -1.0, -1.25]  # log-probabilities of 0 to 3 tokens


@pytest.fixture(scope="module")
def tool():
    return script("benchmarks/first_difference.py")


def decoded(tool, second=((5, 7), (-0.5, -0.25), (True, False)), size=2, score=-0.375):
    """A sentence of two passes over one candidate; ``second`` is its canvas after the second."""
    first = tool.Canvas([6, 7][:size] + [8] * (size - 2), [-0.5, -0.25] + [-1.0] * (size - 2), [True] * size)
    return tool.Decoded([{size: first}, {size: tool.Canvas(*map(list, second))}], list(second[0]), score)


@pytest.mark.parametrize(
    "other, choice, margin, rounding",
    [
        ({"size": 3}, "lengths: only one has [2, 3]", 0.25, 0),
        (
            {"second": ((6, 5), (-0.5, -0.5), (False, True))},
            "pass 2, length 2: only one masks the positions [0, 1]",
            0.25,
            0,
        ),
        (
            {"second": ((4, 7), (-0.625, -0.25), (True, False))},
            "pass 2, length 2, position 0: tokens 5 and 4",
            0.125,
            0,
        ),
        ({"second": ((5, 7), (-0.75, -0.25), (True, False)), "score": -0.5}, "the candidate that wins", 0.125, 0.25),
    ],
)
def test_the_first_choice_that_differs(tool, other, choice, margin, rounding):
    found = tool.first_difference(decoded(tool), decoded(tool, **other), LENGTHS)
    assert found == (choice, margin, rounding)


def test_steps_of_one_sentence(tool):
    tokens = np.array([[[4, 5, 1]], [[6, 7, 8]]])
    lprobs = np.array([[[-0.5, -1.0, np.inf]], [[-0.25, -2.0, -3.0]]])
    masked = tokens != 1
    (found,) = tool.steps_of([(tokens, lprobs, masked)], 0, 1)
    assert found == {2: ([4, 5], [-0.5, -1.0], [True, True])}
    (found,) = tool.steps_of([(tokens, lprobs, masked)], 1, 1)
    assert found == {3: ([6, 7, 8], [-0.25, -2.0, -3.0], [True, True, True])}
