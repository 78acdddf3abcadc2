"""BERT's tokeniser, its vocabulary's bad lines, and the two commands around them."""

import subprocess
import sys
from argparse import Namespace

import pytest
from conftest import ROOT
from fairseq import options
from fairseq.data.encoders import build_bpe
from in_process import own_refusal

from nar_plugins.cli import convert, wordpiece
from nar_plugins.data.dictionary import BertDictionary, join_pieces, load_dictionary
from nar_plugins.data.wordpiece import WordPiece, basic_tokens, read_vocabulary

SPECIAL = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "em",
    "##bed",
    "##ding",
    "##s",
    "the",
    "a",
    "un",
    "##aff",
    "##able",
    ".",
    ",",
    "'",
    "caf",
    "##e",
    "北",
    "[",
    "]",
    "sep",
]


@pytest.fixture
def vocabulary(tmp_path):
    def write(symbols=(*SPECIAL, *WORDS), end="\n", name="vocab.txt"):
        path = tmp_path / name
        path.write_bytes("".join(s + end for s in symbols).encode())
        return path

    return write


@pytest.fixture
def bpe(vocabulary):
    return WordPiece(Namespace(wordpiece_vocab=str(vocabulary()), wordpiece_cased=False))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("it's 3.5$ (US)", ["it", "'", "s", "3", ".", "5", "$", "(", "us", ")"]),
        ("café NAÏVE", ["cafe", "naive"]),
        ("a\tb\u00a0c\u2028d\n", ["a", "b", "c", "d"]),
        ("ab\u200dc\ufffdd\x00e", ["abcde"]),  # joiners and control characters vanish
        (
            "a\x0bb\x0cc\x1cd\x1de\x1ef\x1fg\x85h",
            ["abcdefgh"],
        ),  # which Python calls white space, and BERT control characters
        ("a\r\nb\u2029c\u3000d\u1680e", ["a", "b", "c", "d", "e"]),
        (
            "\u039f\u0394\u039f\u03a3 \u03c2",
            ["\u03bf\u03b4\u03bf\u03c3", "\u03c2"],
        ),  # letter by letter: no final sigma is made
        ("\u0130", ["i"]),  # of two characters in lower case
        ("x北京y", ["x", "北", "京", "y"]),
        ("a\u2014b \u201cq\u201d", ["a", "\u2014", "b", "\u201c", "q", "\u201d"]),
        ("", []),
        ("  ", []),
    ],
)
def test_basic_tokens(text, expected):
    assert basic_tokens(text) == expected


def test_cased_keeps_case_and_accents():
    assert basic_tokens("Café!", cased=True) == ["Café", "!"]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("The embeddings.", "the em ##bed ##ding ##s ."),
        ("unaffable", "un ##aff ##able"),
        ("unaffablex", "[UNK]"),  # a rest that no piece fits makes the whole word unknown
        ("a" * 101, "[UNK]"),
        ("Café, xyz", "caf ##e , [UNK]"),
        ("", ""),
        ("the [SEP] a [MASK] [sep] [x]", "the [SEP] a [MASK] [ sep ] [ [UNK] ]"),  # GLGE's "answer [SEP] passage"
    ],
)
def test_encode(bpe, text, pieces):
    assert bpe.encode(text) == pieces
    assert bpe.encode(pieces.replace(" ##", "")) == pieces  # pieces joined are encoded alike


def test_decode_joins_the_pieces(bpe):
    assert bpe.decode("the em ##bed ##ding ##s . the un ##aff") == "the embeddings . the unaff"
    assert join_pieces("##s a") == "##s a" and bpe.decode("") == ""
    assert bpe.is_beginning_of_word("em") and not bpe.is_beginning_of_word("##bed")


def test_registered_as_a_fairseq_bpe(vocabulary):
    parser = options.get_interactive_generation_parser("nar_translation")
    flags = ["data", "--path", "x", "--bpe", "wordpiece", "--wordpiece-vocab", str(vocabulary())]
    args = options.parse_args_and_arch(parser, flags)
    assert build_bpe(args).encode("the em") == "the em"
    with pytest.raises(ValueError, match="--bpe wordpiece needs --wordpiece-vocab"):
        build_bpe(Namespace(bpe="wordpiece", wordpiece_vocab=None, wordpiece_cased=False))


@pytest.mark.parametrize(
    "symbols, said",
    [
        ([], "is empty"),
        ([s for s in SPECIAL if s != "[MASK]"], "has no [MASK]"),
        ([s for s in SPECIAL if s != "[SEP]"], "has no [SEP]"),
        ([*SPECIAL, "a", "b", "a"], "line 10: 'a' is in line 8 already"),
        ([*SPECIAL, "", "b"], "line 8 is empty"),
        ([*SPECIAL, "a b"], "line 8: 'a b' is more than one symbol"),
        (["a", *SPECIAL], "begins with 'a'"),
        ([*SPECIAL, "a", "a\tb"], "line 9: 'a\tb' is more than one symbol"),
    ],
)
def test_a_broken_vocabulary_is_refused(vocabulary, tmp_path, symbols, said):
    path = vocabulary(symbols)
    message = own_refusal(convert.main, "bert-vocab", path, "--out", tmp_path / "dict.txt")
    assert said in message and str(path) in message
    assert not (tmp_path / "dict.txt").exists()


def test_a_vocabulary_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no vocabulary .*nothing.txt"):
        read_vocabulary(tmp_path / "nothing.txt")
    (tmp_path / "bytes").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(ValueError, match="is not UTF-8 .byte 6"):
        read_vocabulary(tmp_path / "bytes")


def test_the_dictionary_keeps_the_ids(vocabulary, tmp_path, capsys):
    out = tmp_path / "made" / "dict.txt"
    convert.main(["bert-vocab", str(vocabulary()), "--out", str(out)])
    loaded = load_dictionary(str(out))
    assert isinstance(loaded, BertDictionary) and loaded.symbols == [*SPECIAL, *WORDS]
    assert read_vocabulary(out) == loaded.symbols  # --wordpiece-vocab takes it too
    assert f"{len(loaded)} symbols" in capsys.readouterr().out


def test_windows_line_ends_are_no_part_of_a_symbol(vocabulary, tmp_path):
    assert read_vocabulary(vocabulary(end="\r\n")) == [*SPECIAL, *WORDS]


def test_official_renames_index_2(vocabulary, tmp_path):
    out = tmp_path / "dict.txt"
    convert.main(["bert-vocab", str(vocabulary()), "--out", str(out), "--official"])
    assert load_dictionary(str(out)).symbols[:4] == ["[PAD]", "[unused0]", "[X_SEP]", "[UNK]"]
    convert.main(["bert-vocab", str(out), "--out", str(tmp_path / "again.txt"), "--official"])  # it has been renamed
    assert (tmp_path / "again.txt").read_text() == out.read_text()
    with pytest.raises(SystemExit, match=r"line 3 is '\[SEP\]', not \[unused1\]"):
        path = vocabulary(["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"], name="other")
        convert.main(["bert-vocab", str(path), "--out", str(out), "--official"])


def test_the_vocabulary_is_not_overwritten(vocabulary):
    path = vocabulary()
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="is the vocabulary itself"):
        convert.main(["bert-vocab", str(path), "--out", str(path)])
    assert path.read_bytes() == before


def test_a_vocab_txt_in_the_place_of_a_dictionary_names_the_command(vocabulary):
    with pytest.raises(ValueError, match="has no counts: nar-convert bert-vocab"):
        load_dictionary(str(vocabulary()))


@pytest.mark.parametrize("line", ["a", "b two 1", "the 1"])
def test_a_broken_line_of_a_bert_dictionary_is_one_line(tmp_path, line):
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"{s} 1\n" for s in [*SPECIAL, "the"]) + f"{line}\n")
    if line == "b two 1":  # fairseq takes the blank for a part of the symbol
        assert load_dictionary(str(path)).symbols[-1] == "b two"
        return
    with pytest.raises(ValueError) as error:
        load_dictionary(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_remove_bpe_joins_the_pieces_of_a_bert_dictionary(vocabulary, tmp_path):
    convert.main(["bert-vocab", str(vocabulary()), "--out", str(tmp_path / "dict.txt")])
    words = load_dictionary(str(tmp_path / "dict.txt"))
    ids = words.encode_line("the em ##bed ##ding .", add_if_not_exist=False)
    for name in ("wordpiece", " ##"):
        assert words.string(ids, name) == "the embedding ."
    assert words.string(ids) == "the em ##bed ##ding ." and words.string(ids.unsqueeze(0), " ##") == "the embedding ."


def test_the_command_keeps_every_line(vocabulary):
    text = "The embeddings.\n\n\u2028 a\u0085b\n  \nunaffable"

    def run(*arguments, given):
        command = [sys.executable, "-m", "nar_plugins.cli.wordpiece", *arguments]
        return subprocess.run(command, input=given.encode(), capture_output=True, cwd=ROOT)

    done = run("encode", "--vocab", str(vocabulary()), given=text)
    assert done.stdout.decode() == "the em ##bed ##ding ##s .\n\n[UNK]\n\nun ##aff ##able\n", done.stderr
    back = run("decode", given=done.stdout.decode())
    assert back.stdout.decode() == "the embeddings .\n\n[UNK]\n\nunaffable\n"
    for arguments, said in (
        (["encode"], "encode needs --vocab"),
        (["encode", "--vocab", "nothing"], "no vocabulary nothing"),
    ):
        with pytest.raises(SystemExit, match=said):
            wordpiece.main(arguments)
