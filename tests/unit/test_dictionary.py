"""Dictionaries with a real <mask>."""

import pytest
from tiny import dictionary

from nar_plugins.data import checks
from nar_plugins.data.dictionary import MASK, BertDictionary, add_mask, check_same_symbols, load_dictionary

BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]


def write(path, symbols):
    path.write_text("".join(f"{s} 1\n" for s in symbols), encoding="utf-8")
    return str(path)


def test_a_fairseq_dictionary_keeps_its_ids_and_gets_the_mask_at_its_end(tmp_path):
    loaded = load_dictionary(write(tmp_path / "dict.txt", ["a", "b", "ü"]))
    assert loaded.symbols == ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ü"]
    assert add_mask(loaded) == 7
    assert loaded.symbols[7] == MASK and len(loaded) == 8


def test_a_mask_that_is_there_stays_where_it_is(tmp_path):
    loaded = load_dictionary(write(tmp_path / "dict.txt", [MASK, "a", "b"]))
    assert add_mask(loaded) == 4 and add_mask(loaded) == 4
    assert len(loaded) == 7


def test_a_bert_dictionary_keeps_the_line_numbers_as_ids(tmp_path):
    loaded = load_dictionary(write(tmp_path / "dict.txt", BERT))
    assert isinstance(loaded, BertDictionary)
    assert loaded.symbols == BERT
    assert (loaded.pad(), loaded.unk(), loaded.bos(), loaded.eos()) == (0, 2, 3, 4)
    assert add_mask(loaded) == 5 and len(loaded) == len(BERT)  # nothing is appended
    assert loaded.encode_line("the nonsense ##s", add_if_not_exist=False).tolist() == [6, 2, 7, 4]
    assert loaded.string([6, 7, 4]) == "the ##s"


@pytest.mark.parametrize("absent", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_a_bert_dictionary_without_one_of_its_symbols_is_refused(tmp_path, absent):
    path = write(tmp_path / "dict.txt", [s for s in BERT if s != absent])
    with pytest.raises(ValueError) as error:
        load_dictionary(path)
    assert absent in str(error.value) and path in str(error.value)


def test_a_dictionary_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no dictionary .*dict.de.txt"):
        load_dictionary(str(tmp_path / "dict.de.txt"))


@pytest.mark.parametrize(
    "theirs, ours", [(["a", "b"], ["a", "b"]), (["a", "b"], ["a", "b", MASK]), (["a", "b", MASK], ["a", "b"])]
)
def test_dictionaries_that_differ_by_the_appended_mask_are_the_same(theirs, ours):
    check_same_symbols(theirs, ours, "the dictionary")


@pytest.mark.parametrize(
    "theirs, ours, said",
    [
        (["a", "b", "c"], ["a", "x", "c"], "symbol 1 is 'x', the checkpoint has 'b'"),
        (["a", "b", "c", MASK], ["a", "b", MASK], "symbol 2 is 'nothing', the checkpoint has 'c'"),
        (["a", "b"], ["a", "b", "c", MASK], "symbol 2 is 'c', the checkpoint has 'nothing'"),
        ([MASK, "a"], ["a", MASK], f"symbol 0 is 'a', the checkpoint has '{MASK}'"),
    ],
)
def test_other_dictionaries_are_refused_by_the_first_symbol_that_differs(theirs, ours, said):
    with pytest.raises(ValueError) as error:
        check_same_symbols(theirs, ours, "the source dictionary of data-bin")
    assert said in str(error.value) and str(error.value).startswith("the source dictionary of data-bin")
    assert "\n" not in str(error.value)


def test_two_sides_with_other_special_symbols_are_refused(tmp_path):
    bert = load_dictionary(write(tmp_path / "dict.txt", BERT))
    with pytest.raises(ValueError, match="the dictionaries disagree: pad is 0 in the source's, 1 in the target's"):
        checks.check_dictionaries(bert, dictionary())


def test_a_dictionary_without_words_is_refused(tmp_path):
    empty = load_dictionary(write(tmp_path / "dict.txt", []))
    with pytest.raises(ValueError, match="the target dictionary has no words"):
        checks.check_dictionaries(dictionary(), empty)
