"""fairseq's hypotheses, and the removal of repetitions from them."""

import pytest
import torch
from fairseq.data import Dictionary

from nar_plugins.data.dictionary import BertDictionary
from nar_plugins.generators.hypothesis import Dedup, empty_hypothesis, hypothesis


def dedup(how: str, *symbols: str):
    """A function from text to the text that ``--dedup how`` leaves of it."""
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    remover = Dedup(how, dictionary)

    def apply(text: str) -> str:
        tokens = [dictionary.index(s) for s in text.split()]
        assert dictionary.unk() not in tokens
        kept = remover.keep(tokens)
        assert kept == sorted(set(kept))
        return " ".join(dictionary.symbols[tokens[i]] for i in kept)

    return apply


PLAIN = ("a", "b", "c")
PIECES = ("▁ha", "ha", "▁the", "s", "▁")
BPE = ("ha@@", "ha", "the", "s")


@pytest.mark.parametrize(
    "symbols, text", [(PLAIN, "a a b b </s>"), (PIECES, "▁ha ha ▁ha ha </s>"), (BPE, "the the </s>")]
)
def test_none_keeps_everything(symbols, text):
    assert dedup("none", *symbols)(text) == text


@pytest.mark.parametrize(
    "text, left",
    [
        ("a a b b b c </s>", "a b c </s>"),
        ("a b a b </s>", "a b a b </s>"),
        ("a b </s> </s> </s>", "a b </s>"),
        ("", ""),
        ("a </s> a </s>", "a </s> a </s>"),
    ],
)
def test_token_drops_every_repetition_of_the_token_before(text, left):
    assert dedup("token", *PLAIN)(text) == left


def test_token_looks_at_subwords_not_words():
    assert dedup("token", *PIECES)("▁ha ha ▁ha ha ha </s>") == "▁ha ha ▁ha ha </s>"


def test_word_without_subwords_is_token():
    assert dedup("word", *PLAIN)("a a b b b c a </s>") == "a b c a </s>"


@pytest.mark.parametrize(
    "text, left",
    [
        ("▁ha ha ▁ha ha </s>", "▁ha ha </s>"),  # "haha haha"
        ("▁ha ha ha </s>", "▁ha ha ha </s>"),  # one word, "hahaha"
        ("▁ha ▁ha ha </s>", "▁ha ▁ha ha </s>"),  # "ha haha"
        ("▁the ▁the s ▁the s </s>", "▁the ▁the s </s>"),  # "the thes thes"
        ("ha ha ▁the </s>", "ha ha ▁the </s>"),  # a word that starts without its mark
        ("▁ ha ▁ ha </s>", "▁ ha </s>"),
        ("▁ha </s> </s> </s>", "▁ha </s>"),
        ("▁ha </s> ha ha </s>", "▁ha </s> ha ha </s>"),  # what follows an inner </s> is a word of its own
    ],
)
def test_word_drops_repeated_words_of_sentencepiece(text, left):
    assert dedup("word", *PIECES)(text) == left


@pytest.mark.parametrize(
    "text, left",
    [
        ("ha@@ ha ha@@ ha </s>", "ha@@ ha </s>"),  # "haha haha"
        ("ha@@ ha ha </s>", "ha@@ ha ha </s>"),  # "haha ha"
        ("ha ha the </s>", "ha the </s>"),
        ("ha@@ ha@@ ha </s>", "ha@@ ha@@ ha </s>"),  # one word, "hahaha"
        ("ha ha@@ s ha@@ s ha@@ </s>", "ha ha@@ s ha@@ </s>"),  # an unfinished word ends at </s>
        ("ha@@ </s> ha@@ </s>", "ha@@ </s> ha@@ </s>"),
    ],
)
def test_word_drops_repeated_words_of_bpe(text, left):
    assert dedup("word", *BPE)(text) == left


def test_a_hypothesis_has_what_fairseqs_commands_read():
    made = hypothesis(torch.tensor([4, 2]), torch.tensor([-0.5, -0.25]), -0.375, 10, history=[])
    assert made.keys() >= {"tokens", "positional_scores", "score", "steps", "attention", "alignment", "history"}
    assert (made["tokens"].tolist(), made["score"], made["steps"]) == ([4, 2], -0.375, 10)


def test_a_hypothesis_owns_its_scores_because_fairseq_divides_them_in_place():
    shared = torch.tensor([-0.5, -0.25])
    hypothesis(torch.tensor([4, 2]), shared, -0.375, 10)["positional_scores"].div_(2)
    assert shared.tolist() == [-0.5, -0.25]


def test_the_empty_hypothesis_is_an_end_of_sentence_that_cost_no_pass():
    made = empty_hypothesis(2)
    assert (made["tokens"].tolist(), made["positional_scores"].tolist()) == ([2], [0])
    assert (made["score"], made["steps"]) == (0, 0)


def test_word_knows_berts_pieces(tmp_path):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "em", "##bed", "it"]
    (tmp_path / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))
    drop = Dedup("word", BertDictionary.load(str(tmp_path / "dict.txt")))
    tokens = [names.index(name) for name in "em ##bed em ##bed it it [SEP]".split()]
    assert [names[tokens[i]] for i in drop.keep(tokens)] == ["em", "##bed", "it", "[SEP]"]


# -- dictionaries whose text holds symbols that look like another kind's marks
# ---------------------------------------------

WORDS = [f"word{i}" for i in range(40)]


@pytest.mark.parametrize(
    "symbols, text, left",
    [
        (("ca@@", "t", "the", "sat", "▁"), "ca@@ t ca@@ t the the sat </s>", "ca@@ t the sat </s>"),
        (("ca@@", "t", "the", "sat", "▁the"), "ca@@ t ca@@ t the ▁the ▁the </s>", "ca@@ t the ▁the </s>"),
        ((*WORDS, "▁", "▁▁▁"), "word1 word1 ▁ ▁ word2 word2 </s>", "word1 ▁ word2 </s>"),
        ((*WORDS, "▁word"), "word1 word1 ▁word word2 word2 </s>", "word1 ▁word word2 </s>"),
        ((*WORDS, "##"), "word1 word1 ## ## word2 word2 </s>", "word1 ## word2 </s>"),
        (
            ("▁", *"abcdefghijklmnopqrstuvwxyz"),
            "▁ h a a ▁ h a a ▁ b </s>",
            "▁ h a a ▁ b </s>",
        ),  # characters, by frequency
        (("▁ha", "ha", "▁the", "s", "▁", "a@@"), "▁ha ha ▁ha ha a@@ </s>", "▁ha ha ▁ha ha a@@ </s>"),  # "haha hahaa@@"
        (
            ("ha", "##ha", "##s", "the", "▁the"),
            "ha ##ha ha ##ha the the </s>",
            "ha ##ha the </s>",
        ),  # WordPiece, not BERT's file
    ],
)
def test_a_few_symbols_do_not_decide_what_a_word_is(symbols, text, left):
    assert dedup("word", *symbols)(text) == left


def test_an_empty_hypothesis_has_whatever_fairseq_may_print():
    made = empty_hypothesis(2)
    assert made["alignment"] == [] and made["history"] == []
