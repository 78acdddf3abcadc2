"""benchmarks/check_shipping.py compares sub-words and text of all forms of a model, not how text is joined."""

from argparse import Namespace

import pytest
from conftest import script

pytest.importorskip("sentencepiece")
PRINTED = """S-1\t▁two
H-1\t-0.5\t▁zwei ▁
D-1\t-0.5\tzwei
P-1\t-0.5 -0.5 -0.5
S-0\t
H-0\t0.0\t
D-0\t0.0\t
Generate test with beam=5: BLEU4 = 0.00
"""


@pytest.fixture(scope="module")
def check():
    return script("benchmarks/check_shipping.py")


def test_a_blank_at_the_end_is_a_sub_word_and_no_text(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "run", lambda command, **settings: PRINTED)
    first = check.generated(Namespace(spm="", checkpoint="", data="", cpu=True), [])
    assert first == [([], ""), (["▁zwei", "▁"], "zwei")]
    monkeypatch.setattr(check, "run", lambda command, **settings: "\n▁zwei ▁\n")
    pieces = Namespace(encode=lambda text, out_type: [text])
    assert check.by_runtime(tmp_path, [], ["", "two"], pieces) == first


def test_other_sub_words_of_the_same_text_differ(check):
    assert check.output("▁zw ei") != check.output("▁zwei") and check.output("▁zw ei").text == "zwei"
