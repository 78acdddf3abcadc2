"""The scripts of examples/squad_qg and examples/classification."""

import sys

import pytest
from conftest import script


def test_labelled_questions_are_the_same_every_time_and_hide_the_label(tmp_path):
    labelled = script("examples/classification/labelled.py")
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.question").write_text(
            "what is it ?\nin what year ?\nwho\nwho is she ?\n", encoding="utf-8"
        )
    labelled.main(["questions", str(tmp_path), str(tmp_path / "out")])
    assert (tmp_path / "out" / "train.tsv").read_text() == "what\tis it ?\nwho\tis she ?\n"
    labelled.main(["split", str(tmp_path / "out" / "train.tsv"), str(tmp_path / "train")])
    assert (tmp_path / "train.text").read_text() == "is it ?\nis she ?\n"
    assert (tmp_path / "train.label").read_text() == "what\nwho\n"


@pytest.mark.parametrize("line", ["no tab here", "\ttext", "label\t "])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    (tmp_path / "a.tsv").write_text(f"good\ttext\n{line}\n")
    with pytest.raises(SystemExit, match="a.tsv, line 2 is not 'label<TAB>text'"):
        script("examples/classification/labelled.py").main(["split", str(tmp_path / "a.tsv"), str(tmp_path / "a")])
    assert not (tmp_path / "a.text").exists()


def test_the_shared_questions_make_a_set(shared_data, tmp_path):
    script("examples/classification/labelled.py").main(["questions", str(shared_data("squad_qg")), str(tmp_path)])
    assert len((tmp_path / "train.tsv").read_text().splitlines()) == 14373


def test_accuracy_of_fairseqs_output(tmp_path, capsys):
    (tmp_path / "labels").write_text("a\nb\na\na\n")
    (tmp_path / "out").write_text("S-2\tx\nD-2\t-0.1\ta\nD-0\t-0.1\ta\nD-1\t-0.1\ta\nD-3\t-0.1\tnonsense\n")
    accuracy = script("examples/classification/accuracy.py")
    accuracy.main([str(tmp_path / "out"), str(tmp_path / "labels")])
    said = capsys.readouterr().out
    assert said == "out: accuracy 50.0% (2 of 4), always the most frequent label 75.0%, no label 25.0%\n"
    (tmp_path / "short").write_text("a\n")
    with pytest.raises(SystemExit, match="1 outputs but 4 labels"):
        accuracy.main([str(tmp_path / "short"), str(tmp_path / "labels")])


def test_the_score_script_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(SystemExit, match=r"nltk is not installed: pip install -e '.\[qg\]'"):
        script("examples/squad_qg/score.py").main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_questions_of_the_same_sentence_are_references_of_one_another(tmp_path, capsys):
    pytest.importorskip("rouge_score")
    pytest.importorskip("nltk")
    scores = script("examples/squad_qg/score.py")
    (tmp_path / "sources").write_text("s\ns\nt\n")
    (tmp_path / "references").write_text(
        "what is the red thing here ?\nwho has come to the town ?\nwhere is it now , then ?\n"
    )
    (tmp_path / "same").write_text(
        "who has come to the town ?\nwhat is the red thing here ?\nwhere is it now , then ?\n"
    )
    arguments = [str(tmp_path / "references"), str(tmp_path / "same")]
    scores.main([*arguments, "--sources", str(tmp_path / "sources")])
    assert [float(x) for x in capsys.readouterr().out.splitlines()[-1].split("|")[2:4]] == [100, 100]
    scores.main(arguments)  # each alone
    assert all(float(x) < 80 for x in capsys.readouterr().out.splitlines()[-1].split("|")[2:5])
    found = scores.score(["a b c d"], [["a b x c d", "y"]])
    assert found.rouge_l == pytest.approx(100 * 2 * 4 / (4 + 5))  # the longest common subsequence has 4 words
