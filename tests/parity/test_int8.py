"""int8 against float32 on the checkpoints of ``trained_before``, and a batch of 1 against larger ones."""

import pytest
import torch
from test_checkpoints_of_before import binarised, decoded

from nar_plugins.modules.fast.forms import int8_lacks

CASES = [
    ("cmlm", ""),
    ("cmlm", "--schedule confidence"),
    ("nat", ""),
    ("blockwise", "--beam 1"),
    ("blockwise", "--beam 3"),
    ("bang", "--max-len-b 20"),
    ("bang", "--bang-policy verify --max-len-b 20"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return binarised(tmp_path_factory.mktemp("int8"))


@pytest.mark.skipif(int8_lacks(torch.device("cpu")) is not None, reason="no int8 on this processor")
@pytest.mark.parametrize("name, flags", CASES)
def test_words_are_nearly_those_of_float32_and_the_same_in_every_batch(data, name, flags):
    exact, found, alone = (
        {number: hypos[0][1].split() for number, hypos in decoded(data, name, f"{flags} {more}").items()}
        for more in ("", "--decode-dtype int8", "--decode-dtype int8 --batch-size 1")
    )
    assert found == alone
    same = sum(a == b for number, words in exact.items() for a, b in zip(words, found[number]))
    assert same >= 0.85 * sum(map(len, exact.values()))
