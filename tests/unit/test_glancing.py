"""The schedule's text, and what is revealed."""

import pytest
import torch

from nar_plugins.modules.glancing import Schedule, reveal, same_dropout


@pytest.mark.parametrize(
    "text, update, ratio",
    [
        ("0.5:0.3@300k", 0, 0.5),
        ("0.5:0.3@300k", 150_000, 0.4),
        ("0.5:0.3@300k", 300_000, 0.3),
        ("0.5:0.3@300k", 10**7, 0.3),
        ("0.5", 0, 0.5),
        ("0.5", 10**6, 0.5),
        ("1:0@2M", 10**6, 0.5),
        (".2:.4@100", 50, 0.3),
        (" 0.5:0.3@1.5k ", 750, 0.4),
    ],
)
def test_schedule(text, update, ratio):
    assert Schedule.parse(text).at(update) == pytest.approx(ratio)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "half",
        "0.5:0.3",
        "0.5@300k",
        "0.5:0.3@",
        "0.5-0.3@300k",
        "0.5:0.3@300g",
        "-0.5",
        "1.5",
        "0.5:2@10",
        "0.5:0.3@0",
        "0.5:0.3@300k@1",
    ],
)
def test_a_text_that_is_no_schedule_is_refused(text):
    with pytest.raises(ValueError, match="--glancing"):
        Schedule.parse(text)


def test_reveals_by_the_number_of_wrong_tokens():
    gold = torch.arange(10).expand(4, 10)
    predicted = gold.clone()
    predicted[1, :4] = 99  # 4 wrong
    predicted[2, :] = 99  # 10 wrong
    predicted[3, 5:] = 99  # 5 wrong, but of padding
    real = torch.ones(4, 10, dtype=torch.bool)
    real[3, 5:] = False
    draws = torch.rand(4, 10, generator=torch.Generator().manual_seed(1)).double()
    shown = reveal(predicted, gold, real, draws, 0.5)
    assert shown.sum(1).tolist() == [0, 2, 5, 0]
    assert (
        shown[2].nonzero().flatten() == draws[2].argsort()[:5].sort().values
    ).all()  # the least draws, right or wrong
    assert reveal(predicted, gold, real, draws, 0.3).sum(1).tolist() == [0, 1, 3, 0]  # 0.3 x 10 is 3
    assert reveal(predicted, gold, real, draws, 1.0).sum(1).tolist() == [0, 4, 10, 0]


def test_the_second_pass_has_the_first_ones_dropout():
    drop, x = torch.nn.Dropout(0.5), torch.ones(1000)
    with same_dropout(x.device):
        first = drop(x)
    assert torch.equal(first, drop(x))
    assert not torch.equal(first, drop(x))


def test_a_ratio_of_a_long_sentence_is_what_integers_say():
    """In float32 the product of 100 and 0.53 is below 53 by more than a millionth."""
    wrong = 300
    gold, draws = torch.zeros(wrong, wrong, dtype=torch.long), torch.rand(wrong, wrong).double()
    predicted = torch.ones(wrong, wrong, dtype=torch.long).tril()  # row i has i + 1 wrong
    real = torch.ones_like(gold, dtype=torch.bool)
    for hundredths in (1, 7, 29, 53, 57, 58, 99, 100):
        shown = reveal(predicted, gold, real, draws, hundredths / 100).sum(1)
        assert shown.tolist() == [n * hundredths // 100 for n in range(1, wrong + 1)]
