"""What is scored: lines, BLEU's tokenisers, unknown words; nar-score, the scripts that read as it does, validation's
BLEU.
"""

import io
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from conftest import ROOT, script
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from nar_plugins.checkpoint_io.convert_mask_predict import read_symbols
from nar_plugins.cli import score as nar_score
from nar_plugins.cli import user_dir
from nar_plugins.data import bleu
from nar_plugins.data.generated import best_hypotheses, generated
from nar_plugins.data.lines import read_lines, split_lines
from nar_plugins.measure.quality import score, split_compounds, warn_of_references
from nar_plugins.tasks.translation import NarTranslationTask

NO_ENDS = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\r",
]  # str.splitlines cuts at all of them
ZH = (
    "我们今天去北京参加大会。\n他昨天买了三本新书和两支笔。\n",
    "我们今天去北京参加会议。\n他昨天买了三本新书和一支笔。\n",
)


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, lines",
    [
        *((f"a{end}b\nc\n", [f"a{end}b", "c"]) for end in NO_ENDS),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\n\n", ["", ""]),
        ("", []),
        ("\ufeff", []),
    ],
)
def test_a_line_ends_at_a_newline_only(text, lines, tmp_path, monkeypatch):
    assert split_lines(text) == lines
    (tmp_path / "file").write_bytes(text.encode())
    assert read_lines(tmp_path / "file") == lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_lines("-") == lines


def test_a_dictionary_of_a_release_may_hold_what_python_takes_for_a_line_end(tmp_path):
    (tmp_path / "dict.txt").write_text("a\u2028b 5\nc 3\n", encoding="utf-8")
    assert read_symbols(tmp_path / "dict.txt")[1:] == [("a\u2028b", "5"), ("c", "3")]


def test_the_scripts_of_the_examples_read_the_same_lines(tmp_path, capsys, monkeypatch):
    (tmp_path / "labels").write_bytes("\ufeffa\u2028x\r\nb\r\n".encode())
    (tmp_path / "out").write_text("D-0\t-0.1\ta\u2028x\nD-1\t-0.1\tb\n", encoding="utf-8")
    script("examples/classification/accuracy.py").main([str(tmp_path / "out"), str(tmp_path / "labels")])
    assert "accuracy 100.0% (2 of 2)" in capsys.readouterr().out
    (tmp_path / "text").write_bytes("a\rb\nc".encode())
    assert script("examples/squad_qg/score.py").read(tmp_path / "text") == ["a\rb", "c"]
    (tmp_path / "toy").write_text("S-0\ta0\x85a1\nH-0\t-0.1\ta0 a1\n", encoding="utf-8")
    assert script("examples/bang_toy/toy.py").read(tmp_path / "toy") == {0: ("a0\x85a1", "a0 a1", 3)}
    (tmp_path / "pairs").write_bytes("\ufeffa\tx\x0cy\r\nb\tz\n".encode())
    script("examples/classification/labelled.py").main(["split", str(tmp_path / "pairs"), str(tmp_path / "set")])
    assert (tmp_path / "set.text").read_bytes() == b"x\x0cy\nz\n" and (tmp_path / "set.label").read_bytes() == b"a\nb\n"


def test_pieces_are_made_of_lines_as_wc_counts_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # as when it is run
    spm = script("scripts/spm.py")
    processor = SimpleNamespace(encode=lambda line, out_type: [repr(line)])
    monkeypatch.setattr(spm.sentencepiece, "SentencePieceProcessor", lambda model_file: processor)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffa\rb\r\nü".encode()), encoding="ascii"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["spm.py", "encode", "--model", "m"])
    spm.main()
    sys.stdout.flush()
    assert out.getvalue().decode() == "'a\\rb'\n'ü'\n"


# -- tokenisers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language, name",
    [
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("zh_TW", "zh"),
        ("ZH", "zh"),
        ("th", "char"),
        ("km", "char"),
        ("lo", "char"),
        ("my", "char"),
        ("de", "13a"),
        ("tgt", "13a"),
        ("zhuang", "13a"),
        (None, "13a"),
        ("", "13a"),
    ],
)
def test_the_tokeniser_follows_the_language(language, name):
    assert bleu.tokenizer_of(language) == name
    assert bleu.tokenizer_name(bleu.bleu_metric(None, language)) == name


@pytest.mark.parametrize(
    "language, name, extra", [("ja", "ja-mecab", "sacrebleu[ja]"), ("ko", "ko-mecab", "sacrebleu[ko]")]
)
def test_a_language_whose_extra_is_missing_is_counted_in_characters(language, name, extra, monkeypatch, caplog):
    monkeypatch.setattr(bleu, "find_spec", lambda module: None)
    assert bleu.tokenizer_of(language) == "char"
    assert f"pip install '{extra}'" in caplog.text
    with pytest.raises(ValueError, match=rf"--x {name} needs pip install 'sacrebleu\[{language}\]'"):
        bleu.bleu_metric(name, flag="--x")
    monkeypatch.setattr(bleu, "find_spec", lambda module: object())
    assert bleu.tokenizer_of(language) == name


def test_a_tokeniser_that_cannot_be_loaded_is_named_in_one_line(monkeypatch):
    def fail(tokenize):
        raise OSError("no network\nhere")

    monkeypatch.setattr(bleu, "BLEU", fail)
    with pytest.raises(ValueError, match="^--tokenize flores200: no network here$"):
        bleu.bleu_metric("flores200")
    with pytest.raises(ValueError, match="^--tokenize 14a: sacreBLEU has .*13a"):
        bleu.bleu_metric("14a")


@pytest.mark.parametrize("tokenizer, said", [("13a", True), ("none", True), ("zh", False), ("char", False)])
def test_text_without_blanks_is_said_where_the_tokeniser_needs_them(tokenizer, said, caplog):
    warn_of_references([split_lines(ZH[1])], bleu.bleu_metric(tokenizer))
    assert ("hardly a blank" in caplog.text) is said
    caplog.clear()
    warn_of_references([["Donaudampfschifffahrtsgesellschaft ist ein langes Wort", "ja"]], bleu.bleu_metric(tokenizer))
    assert not caplog.text


# -- unknown words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "none", "zh", "char"])
@pytest.mark.parametrize("said", ["<unk>", "[UNK]"])
@pytest.mark.parametrize("form", ["{}", "<{}>"])
def test_an_unknown_word_is_never_translated(said, form, tokenizer):
    reference = form.format(said)
    found = score([said] * 4, [[reference] * 4], bleu.bleu_metric(tokenizer))
    assert found.bleu == 0 and found.chrf < 1e-9


def test_t_lines_give_the_score_of_the_text_that_they_were(caplog):
    """The words that the dictionary lacks are missed, and nothing else changes."""
    texts = ["the cat sat on a rare mat .", "one extraordinary day it rained again"]
    said = ["the cat sat on a <unk> mat .", "one <unk> day it rained again"]
    cut = ["the cat sat on a <<unk>> mat .", "one <<unk>> day it rained again"]
    assert score(said, [cut]).bleu == pytest.approx(score(said, [texts]).bleu)
    assert 0 < score(said, [texts]).bleu < 100
    warn_of_references([cut], bleu.bleu_metric(None))
    assert "hold 2 unknown words" in caplog.text
    warn_of_references([["▁the ▁cat", "▁a ▁b"]], bleu.bleu_metric(None))
    assert caplog.text.count("sub-words") == 1
    assert score(["a <b> c d"], [["a <b> c d"]]).bleu == pytest.approx(100)  # other words in brackets are words


# -- nar-score ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path, monkeypatch, capsys):
    """A function: texts by name, and arguments that may name them -> what nar-score prints."""

    def run(*arguments, stdin: str = "", **texts) -> str:
        for name, text in texts.items():
            (tmp_path / name).write_bytes(text.encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        nar_score.main([str(tmp_path / word) if word in texts else word for word in arguments])
        return capsys.readouterr().out

    def refusal(*arguments, **texts) -> str:
        with pytest.raises(SystemExit) as error:
            run(*arguments, **texts)
        said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
        assert error.value.code == 2 and said.count("\n") == 1 and said.startswith("nar-score: "), said
        return said.strip()

    run.refusal = refusal
    return run


def figures(printed: str) -> dict:
    """Name of a figure -> the first word behind it, of what nar-score prints of one system."""
    return dict(re.fullmatch(r"([A-Za-z ]+?) ([\d.]+%?)( .*)?", line).groups()[:2] for line in printed.splitlines())


def test_chinese_is_scored_by_its_tokeniser_and_chrf_stays(scored):
    texts = dict(hyp=ZH[0], ref=ZH[1])
    plain = scored("hyp", "ref", **texts)
    assert plain.startswith("BLEU 0.00  nrefs:1|case:mixed|eff:no|tok:13a|")
    for flags in (("--target-lang", "zh"), ("--target-lang", "zh-CN"), ("--tokenize", "zh")):
        found = scored("hyp", "ref", *flags, **texts)
        assert found.startswith("BLEU 76.67  nrefs:1|case:mixed|eff:no|tok:zh|")
        assert found.splitlines()[1:4] == plain.splitlines()[1:4]
    assert "|tok:char|" in scored("hyp", "ref", "--target-lang", "zh", "--tokenize", "char", **texts)


OUTPUT = "".join(
    f"{kind}-{n}\t{text}\n"
    for n, text in enumerate(["one two\u2028three four\tfive", "six seven eight nine"])
    for kind, text in (("S", "x"), ("T", text), ("H", f"-0.1\t{text}"), ("D", f"-0.1\t{text}"))
)


def test_lines_of_fairseqs_output_are_read_whole(scored):
    assert generated(split_lines(OUTPUT), "T") == ["one two\u2028three four\tfive", "six seven eight nine"]
    assert scored("out", out=OUTPUT).startswith("BLEU 100.00 ")
    other = "\ufeffone two three four five\r\nsix seven eight nine"
    assert scored("out", "ref", out=OUTPUT, ref=other).startswith("BLEU 100.00 ")
    half = OUTPUT.replace("five", "other", 1)  # in the first T- line, behind U+2028 and a tab
    assert not scored("out", out=half).startswith("BLEU 100.00 ")
    assert generated(["D-0\t-0.1\t", "D-1\t-0.2\tx"], "D") == ["", "x"]


@pytest.mark.parametrize("end", ["D-1\t-0.1", "D-1"])
def test_half_a_line_of_a_stopped_run_is_no_empty_output(scored, end):
    lines = OUTPUT.split("\n")
    half = "\n".join([*lines[:7], end])  # without the P- lines that fairseq prints, too
    said = scored.refusal("out", out=half)
    assert said == f"nar-score: out, line 8: '{end}' is cut off, as a run that is stopped leaves its last line: " + (
        "decode these sentences again"
    )
    assert "out, line 8" in scored.refusal("out", "ref", out=half, ref="a\nb\n")
    assert best_hypotheses(["a", "D-1", "D-2"]) == ["a", "D-1", "D-2"]  # plain text
    assert best_hypotheses(["D-1", "D-2"]) == ["D-1", "D-2"]


def test_a_sentence_that_a_stopped_run_has_not_finished_is_named(scored):
    whole = OUTPUT.replace("S-1", "P-0\t-0.1 -0.1\nS-1") + "P-1\t-0.1\n"
    assert scored("out", out=whole).startswith("BLEU 100.00 ")
    cut = whole[: whole.rindex(" nine\nP-1")]  # within the text of the last D- line
    assert scored.refusal("out", out=cut) == "nar-score: out is incomplete: sentence 1 has no line P-"
    assert scored.refusal("out", out=f"{whole}S-1\tx\n") == "nar-score: out has sentence 1 twice"


def test_an_output_with_gaps_is_scored_with_a_warning(scored, caplog):
    half = OUTPUT[OUTPUT.index("S-1") :]
    assert scored("out", out=half).startswith("BLEU 100.00 ")
    (said,) = caplog.messages
    assert said.startswith("a part of the data is scored; ") and "out lacks 0: a shard, or a run that" in said
    scored("out", out=OUTPUT)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_standard_input_is_scored(scored, arguments):
    assert scored(*arguments, stdin=OUTPUT).startswith("BLEU 100.00 ")
    assert scored("-", "ref", stdin="a b c d e\n", ref="a b c d e\n").startswith("BLEU 100.00 ")
    assert scored("hyp", "-", stdin="a b c d e\n", hyp="a b c d e\n").startswith("BLEU 100.00 ")


def test_what_cannot_be_scored_is_one_line_and_status_2(scored, tmp_path, monkeypatch):
    refused = scored.refusal
    assert refused("no file", "ref", ref="a\n") == "nar-score: no file no file"
    assert "standard input, which can be read once" in refused("-", "-")
    assert "no references: hyp has no T- lines" in refused("hyp", hyp="a b\n")
    assert "no references: ref is empty, hyp has 1 sentences" in refused("hyp", "ref", hyp="a b\n", ref="")
    assert "hyp is empty: there is no sentence to score" in refused("hyp", "ref", hyp="", ref="")
    assert "hyp has 2 sentences, ref has 1" in refused("hyp", "ref", hyp="a\nb\n", ref="a\n")
    holes = "D-0\t-1\ta\nD-3\t-1\tb\n"
    assert refused("hyp", "ref", hyp=holes, ref="a\n").endswith("hyp has 2 sentences, ref has 1; hyp lacks 1, 2")
    assert "--paired-bs compares several systems" in refused("hyp", "ref", "--paired-bs", hyp="a\n", ref="a\n")
    assert "-i has x twice" in refused("-i", "x", "x")
    assert "no folder" in refused("hyp", "ref", "--json", str(tmp_path / "no" / "x.json"), hyp="a\n", ref="a\n")
    assert refused("no file", "ref", "--json", str(tmp_path)).endswith("this is a folder, and not a file")
    (tmp_path / "utf16").write_text("a\n", encoding="utf-16")
    assert "utf16 is UTF-16" in refused(str(tmp_path / "utf16"), "ref", ref="a\n")
    (tmp_path / "latin").write_bytes("ü\n".encode("latin-1"))
    assert "latin is not UTF-8 (byte 0)" in refused(str(tmp_path / "latin"), "ref", ref="a\n")
    other = OUTPUT.replace("T-0\tone", "T-0\ttwo")
    assert "the T- lines of a and b differ" in refused("-i", "a", "b", a=OUTPUT, b=other)
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    said = refused("hyp", "ref", "--moses", "de", hyp="a\n", ref="a\n")
    assert said == "nar-score: --moses de needs sacremoses: pip install 'nar-plugins[recipes]'"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(SystemExit):
        nar_score.main([])


LETTERS = ["a", "b", "c", "-", "a-b", "c-d-e", "é-b", "<unk>", ".", "\u2028", "\xa0", "\x85", "a\u2028b"]


def random_texts(seed: int, lines: int = 60) -> tuple:
    """Hypotheses and references that share most words."""
    draw = random.Random(seed)
    references = [[draw.choice(LETTERS) for _ in range(draw.randint(1, 12))] for _ in range(lines)]
    hypotheses = [[draw.choice(LETTERS) if draw.random() < 0.2 else w for w in line] for line in references]
    return tuple([" ".join(line) for line in side] for side in (hypotheses, references))


def as_output(hypotheses, references, seed: int = 0) -> str:
    """fairseq-generate's output, its sentences in another order."""
    order = random.Random(seed).sample(range(len(hypotheses)), len(hypotheses))
    return "".join(f"T-{i}\t{references[i]}\nH-{i}\t-1\tx\nD-{i}\t-1\t{hypotheses[i]}\nP-{i}\t-1\n" for i in order)


@pytest.mark.parametrize("seed", range(3))
def test_tokenised_bleu_is_sacrebleus_without_a_tokeniser(scored, seed):
    hypotheses, references = random_texts(seed)
    # to sacreBLEU the unknown words of the references are words that no hypothesis has
    theirs = BLEU(tokenize="none").corpus_score(hypotheses, [[r.replace("<unk>", "nowhere") for r in references]])
    plain = dict(hyp="".join(f"{line}\n" for line in hypotheses), ref="".join(f"{line}\n" for line in references))
    for found in (scored("hyp", "ref", **plain), scored("out", out=as_output(hypotheses, references, seed))):
        assert float(figures(found)["BLEU tokenised"]) == pytest.approx(theirs.score, abs=0.01)
    assert 10 < theirs.score < 95


@pytest.mark.parametrize(
    "text, parts",
    [
        ("well-known", "well ##AT##-##AT## known"),
        ("ab-cd-ef", "ab ##AT##-##AT## cd ##AT##-##AT## ef"),
        ("a-b-c", "a ##AT##-##AT## b-c"),  # as in Perl, where matches do not overlap
        ("a-é-c", "a ##AT##-##AT## é ##AT##-##AT## c"),  # two bytes
        ("a - b -c d- @-@", "a - b -c d- @ ##AT##-##AT## @"),
        ("x\u2028-y", "x\u2028 ##AT##-##AT## y"),
    ],
)
def test_compounds_are_split_as_by_the_papers_script(text, parts):
    assert split_compounds(text) == parts
    if shutil.which("perl"):
        script = ["perl", "-ple", r"s{(\S)-(\S)}{$1 ##AT##-##AT## $2}g"]
        assert subprocess.run(script, input=f"{text}\n".encode(), capture_output=True).stdout.decode() == f"{parts}\n"


def test_compounds_are_split_on_both_sides(scored):
    texts = dict(hyp="the well-known long-term state-run plan\n", ref="the well-known long-range state-run plan\n")
    parts = {name: split_compounds(text.strip()) for name, text in texts.items()}
    theirs = BLEU(tokenize="none").corpus_score([parts["hyp"]], [[parts["ref"]]])
    found = figures(scored("hyp", "ref", **texts))
    assert float(found["BLEU compounds split"]) == pytest.approx(theirs.score, abs=0.01)
    assert float(found["BLEU tokenised"]) < theirs.score


def test_faults_are_counted(scored):
    texts = dict(hyp="a a a b .\n\n \n<unk> c <unk>\n[UNK]\n", ref="a a b c d\ne\nf\ng h i\n<unk>\n")
    found = figures(scored("hyp", "ref", "--tokenize", "none", **texts))
    assert found["empty outputs"] == "2" and found["outputs with unknown words"] == "2"
    assert found["repetition"] == f"{2 / 9:.2%}"
    assert found["length ratio"] == f"{9 / 11:.3f}"
    assert scored("hyp", "ref", "--tokenize", "none", **texts).splitlines()[5].endswith(f"references {1 / 11:.2%}")


def test_moses_tokenises_both_sides(scored, caplog):
    pytest.importorskip("sacremoses")
    texts = dict(hyp="Das ist's (wohl), z.B. heute.\n", ref="Das ist's (wohl), z.B. morgen.\n")
    tokens = ["Das ist &apos; s ( wohl ) , z.B. heute .", "Das ist &apos; s ( wohl ) , z.B. morgen ."]
    theirs = BLEU(tokenize="none").corpus_score(tokens[:1], [tokens[1:]])
    printed = scored("hyp", "ref", "--moses", "de", **texts)
    assert float(figures(printed)["BLEU tokenised"]) == pytest.approx(theirs.score, abs=0.01)
    assert printed.splitlines()[1].endswith(", Moses (de)") and not caplog.messages
    scored("hyp", "ref", "--moses", "xx", **texts)
    (said,) = caplog.messages
    assert said.startswith("--moses xx: Moses has no rules for it, and English's are used (it has as, bn, ca, cs, de")


def test_several_systems_are_a_table_with_sacrebleus_paired_bootstrap(scored, tmp_path):
    (first, references), (second, _) = random_texts(1), random_texts(1)
    second = [*second[:40], *(line[: len(line) // 2] for line in second[40:])]
    texts = dict(a=as_output(first, references), b="".join(f"{line}\n" for line in second))
    texts["ref"] = "".join(f"{line}\n" for line in references)
    flags = ("--paired-bs", "--paired-bs-n", "50", "--json", str(tmp_path / "found.json"))
    printed = scored("ref", "-i", "a", "b", *flags, **texts)
    found = json.loads((tmp_path / "found.json").read_text())
    known = [line.replace("<unk>", bleu.UNKNOWN_IN_REFERENCE) for line in references]
    test = PairedTest([("a", first), ("b", second)], {"BLEU": BLEU()}, [known], test_type="bs", n_samples=50)
    theirs = test()[1]["BLEU"]
    for system, expected in zip(found["systems"], theirs):
        ours = system["paired_bs"]["BLEU"]
        assert (ours["score"], ours["p_value"]) == (expected.score, expected.p_value)
        assert (ours["mean"], ours["interval"]) == (float(expected.mean), float(expected.ci))
        assert f"{expected.mean:.2f} ± {expected.ci:.2f}" in printed
    assert [Path(system["system"]).name for system in found["systems"]] == ["a", "b"]
    assert "|bs:50|seed:12345|" in found["paired_bs"]["BLEU"] and found["paired_bs"]["BLEU"] in printed
    assert len([line for line in printed.splitlines() if line.startswith("|")]) == 4
    one = figures(scored("a", "ref", **texts))
    assert found["systems"][0]["bleu_tokenised"]["score"] == pytest.approx(float(one["BLEU tokenised"]), abs=0.01)
    assert "paired" not in scored("ref", "-i", "a", "b", **texts)


def test_the_same_text_does_not_differ_significantly(scored, tmp_path):
    """As of exact blockwise decoding and greedy search; sacreBLEU's p-value is the smallest that there is."""
    text, flags = "a b c d e\nf g h i x\n", ("--paired-bs", "--paired-bs-n", "50", "--json", str(tmp_path / "found"))
    scored("ref", "-i", "a", "b", *flags, ref=text.replace("x", "j"), a=text, b=text)
    tests = [system["paired_bs"] for system in json.loads((tmp_path / "found").read_text())["systems"]]
    assert [test[name]["p_value"] for test in tests for name in ("BLEU", "chrF")] == [None, None, 1.0, 1.0]


def test_the_folder_of_the_package_and_its_help(capsys):
    user_dir.main([])
    assert capsys.readouterr().out == f"{ROOT / 'nar_plugins'}\n"
    with pytest.raises(SystemExit):
        user_dir.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: nar-user-dir")


# -- validation --------------------------------------------------------------------------------------------------------


def validating(*flags, target="zh") -> NarTranslationTask:
    """A task that validates, with the pieces of the Chinese sentences in its dictionary."""
    dictionary = Dictionary()
    for piece in ["▁", *sorted(set("".join(ZH).replace("\n", ""))), "▁a", "▁b", "▁c", "▁d", "▁,"]:
        dictionary.add_symbol(piece)
    given = ["--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece", "--target-lang", target, *flags]
    made = NarTranslationTask(convert_namespace_to_omegaconf(tiny.arguments(*given)).task, dictionary, dictionary)
    made.tokenizer = None  # of --eval-bleu-detok space, made with the model
    return made


def batch(task, said, references):
    """What a generator would say, put into the task, and the batch with the targets; lists of lists of pieces."""
    eos, unk = task.tgt_dict.eos(), task.tgt_dict.unk()
    said, references = (
        [
            torch.tensor([unk if piece == "<unk>" else task.tgt_dict.indices[piece] for piece in line] + [eos])
            for line in lines
        ]
        for lines in (said, references)
    )
    task.inference_step = lambda *args, **kwargs: [[{"tokens": tokens}] for tokens in said]
    return {"target": torch.nn.utils.rnn.pad_sequence(references, batch_first=True, padding_value=task.tgt_dict.pad())}


def zh_batch(task):
    said, references = ([["▁", *line] for line in split_lines(text)] for text in ZH)
    return batch(task, said, references)


@pytest.mark.parametrize(
    "flags, target, name, points",
    [
        ((), "zh", "zh", 76.67),
        ((), "zh_CN", "zh", 76.67),
        ((), "tgt", "13a", 0),
        (("--eval-bleu-tokenize", "zh"), "tgt", "zh", 76.67),
        (("--eval-bleu-tokenize", "13a"), "zh", "13a", 0),
        (("--eval-tokenized-bleu",), "zh", "none", 0),
    ],
)
def test_validation_scores_by_the_tokeniser_of_the_language_or_the_flag(flags, target, name, points, caplog):
    with caplog.at_level("INFO"):
        task = validating(*flags, target=target)
    assert f"--eval-bleu: sacreBLEU's tokeniser {name}" in caplog.text
    assert round(task._inference_with_bleu(None, zh_batch(task), None).score, 2) == points


@pytest.mark.parametrize("flags", [(), ("--eval-tokenized-bleu",)])
def test_validation_counts_as_fairseq_does_by_its_tokenisers(flags):
    task = validating(*flags, target="de")
    said = ["a <unk> b , c d", "<unk> , a b c d", "a b c <unk>", "c d a b , , a"]
    references = ["a c <unk> , c d", "<unk> , a b c d", "a b c d", "c d a b , a"]
    pieces = [[[w if w == "<unk>" else f"▁{w}" for w in line.split()] for line in side] for side in (said, references)]
    sample = batch(task, *pieces)
    ours, theirs = (
        way(task, None, sample, None)
        for way in (NarTranslationTask._inference_with_bleu, TranslationTask._inference_with_bleu)
    )
    assert vars(ours) == vars(theirs) and ours.score > 0


def test_an_unknown_word_is_never_translated_in_validation_either():
    task = validating("--eval-bleu-tokenize", "char")
    sample = batch(task, [["<unk>"] * 5], [["<unk>"] * 5])
    assert task._inference_with_bleu(None, sample, None).counts == [0] * 4


def test_validation_says_once_that_the_references_have_no_blanks(caplog):
    task = validating(target="tgt")
    for _ in range(49):
        task._inference_with_bleu(None, zh_batch(task), None)
    assert "hardly a blank" not in caplog.text  # the shortest sentences come first, and may be single words
    for _ in range(60):
        task._inference_with_bleu(None, zh_batch(task), None)
    assert caplog.text.count("hardly a blank") == 1 and "give --eval-bleu-tokenize zh" in caplog.text


def test_samples_are_printed_with_the_dictionarys_unknown_word(caplog):
    task = validating("--eval-bleu-print-samples")
    with caplog.at_level("INFO"):
        task._inference_with_bleu(None, batch(task, [["▁a", "<unk>"]], [["<unk>", "▁b"]]), None)
    assert "example hypothesis: a<unk>\n" in caplog.text and "example reference: <unk> b\n" in caplog.text


def test_two_tokenisers_or_one_for_nothing_are_refused():
    with pytest.raises(ValueError, match="--eval-tokenized-bleu .* --eval-bleu-tokenize zh .*leave one out"):
        validating("--eval-tokenized-bleu", "--eval-bleu-tokenize", "zh")
    with pytest.raises(ValueError, match="--eval-bleu-tokenize zh needs --eval-bleu"):
        tiny.task("--eval-bleu-tokenize", "zh")
