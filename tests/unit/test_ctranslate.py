"""CTranslate2 with the weights of a fairseq model: the same words as fairseq's greedy search."""

import importlib.util
import sys

import pytest
from blockwise_twin import greedy, random_model
from conftest import source_batch

from nar_plugins.measure.ctranslate import CTranslate2


def test_its_absence_is_named(monkeypatch):
    one, task = random_model()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ValueError, match="^CTranslate2 is not installed: pip install 'nar-plugins\\[ct2\\]'$"):
        CTranslate2(one, task.source_dictionary, task.target_dictionary, "float32", 1)


@pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")
@pytest.mark.parametrize("flags", [(), ("--encoder-normalize-before", "--decoder-normalize-before")])
def test_the_words_are_those_of_fairseq(flags):
    one, task = random_model(*flags)
    source = source_batch([5, 9, 3, 12, 7], 20)
    wanted = [h["tokens"].tolist()[:-1] for h in greedy([one], task, source, max_len_b=15)]
    system = CTranslate2(one, task.source_dictionary, task.target_dictionary, "float32", 1)
    options = dict(max_decoding_length=15, min_decoding_length=1)
    assert system.translate(source, **options) == wanted
