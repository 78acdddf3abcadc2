"""Many ``<unk>``: a wrong segmentation where much is known of it, and else a warning."""

import math

import pytest
import torch
from tiny import dictionary

from nar_plugins.data import checks

FEW, MANY = [torch.tensor([3, 5, 2])], [torch.tensor([3, 5, 2])] * 100  # half of 2, or of 200, words are unknown


def test_only_training_is_judged_by_every_word():
    assert checks.min_tokens_to_refuse(train=True, training=True) == 0
    assert checks.min_tokens_to_refuse(train=False, training=True) == checks.MIN_VALID_TOKENS == 200
    assert (
        checks.min_tokens_to_refuse(train=True, training=False)
        == checks.min_tokens_to_refuse(train=False, training=False)
        == math.inf
    )


@pytest.mark.parametrize(
    "text, enough, refused",
    [(FEW, 0, True), (FEW, 200, False), (MANY, 200, True), (MANY[:99], 200, False), (MANY, math.inf, False)],
)
def test_a_small_split_and_one_that_is_only_decoded_are_warned_of(text, enough, refused, caplog):
    said = "test (src): 50% of the tokens are <unk>: was the text segmented as for its dictionary?"
    if refused:
        with pytest.raises(ValueError) as error:
            checks.check_tokens(text, dictionary(), "test (src)", enough)
        assert str(error.value) == said
    else:
        checks.check_tokens(text, dictionary(), "test (src)", enough)
        assert [record.getMessage() for record in caplog.records] == [said]


def test_a_token_beyond_the_dictionary_is_refused_always():
    with pytest.raises(ValueError, match="its dictionary ends at 23"):
        checks.check_tokens([torch.tensor([24, 2])], dictionary(), "test (src)", math.inf)
