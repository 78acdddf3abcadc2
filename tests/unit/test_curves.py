"""nar-curves: the logs of fairseq-train in its formats, and the plot."""

import sys
from functools import partial

import pytest
from conftest import ROOT, preprocess, random_sentences, run, write_pairs
from in_process import own_refusal

from nar_plugins.cli import curves as nar_curves
from nar_plugins.measure.curves import Run, plot_runs, read_run

HEAD = "2026-11-29 08:56:18 | INFO | "
SIMPLE = [
    "progress bars and warnings",
    HEAD + "fairseq_cli.train | num. shared model params: 10 (num. trained: 10)",
    HEAD + "train_inner | epoch 001:      2 / 6 loss=7.724, words=5.667, wps=6137.7, num_updates=2, lr=0.001",
    HEAD + "valid | epoch 001 | valid on 'valid' subset | loss 7.664 | words 5.541 | bleu 0.5 | num_updates 3",
    HEAD + "valid1 | epoch 001 | valid on 'valid1' subset | loss 1 | bleu 9 | num_updates 3",
    HEAD + "train_inner | epoch 001:      4 / 6 loss=7.565, words=5.596, wps=3477.3, num_updates=4, lr=0.001",
    HEAD + "valid | epoch 001 | valid on 'valid' subset | loss 7.507 | bleu 1.25 | num_updates 6 | best_loss 7.507",
    HEAD + "train | epoch 001 | loss 7.763 | nll_loss 5.585 | wps 3538.9 | num_updates 6 | lr 0.001",
]
JSON = [
    HEAD + 'train_inner | {"epoch": 1, "update": 0.333, "loss": "7.724", "words": "5.667", "num_updates": "2"}',
    HEAD + 'valid | {"epoch": 1, "valid_loss": "7.664", "valid_bleu": "0.5", "valid_num_updates": "3"}',
    HEAD + 'valid1 | {"epoch": 1, "valid1_loss": "1", "valid1_bleu": "9", "valid1_num_updates": "3"}',
    HEAD + 'train_inner | {"epoch": 1, "update": 0.667, "loss": "7.565", "num_updates": "4"}',
    HEAD + 'valid | {"epoch": 1, "valid_loss": "7.507", "valid_bleu": "1.25", "valid_num_updates": "6"}',
    HEAD + 'train | {"epoch": 1, "train_loss": "7.763", "train_num_updates": "6", "train_lr": "0.001"}',
    HEAD + 'train_inner | {"epoch": 1, "update": 0.9, "loss": "7.',  # the run was stopped
]
WANTED = Run("x", {2: 7.724, 4: 7.565}, {3: 7.664, 6: 7.507}, {3: 0.5, 6: 1.25})


@pytest.mark.parametrize("log", [SIMPLE, JSON], ids=["simple", "json"])
@pytest.mark.parametrize("head", [HEAD, ""], ids=["with the time", "of --log-file"])
def test_both_formats_have_the_same_curves(log, head):
    lines = [line if head else line.split(" | ", 3)[-1] for line in log]
    assert read_run("x", lines) == WANTED


def test_without_updates_the_epochs_are_the_training_curve():
    bars = [line for line in SIMPLE if "train_inner" not in line]
    bars[-1] = "\repoch 001:  50%|##  | 3/6 [00:01<00:01, loss=7, num_updates=3]\r" + bars[-1]
    assert read_run("x", bars).training_loss == {6: 7.763}


@pytest.mark.parametrize("rest", ["num_updates=1", "num_updates=", "loss="])
def test_a_line_that_is_cut_off_is_no_point(rest):
    cut = SIMPLE[2].replace("num_updates=2, lr=0.001", rest)
    assert read_run("x", [*SIMPLE, cut]) == WANTED


def test_where_a_run_was_continued_its_later_figures_count():
    again = [line.replace("7.565", "7.1") for line in SIMPLE if "4 / 6" in line]
    assert read_run("x", [*SIMPLE, *again]).training_loss == {2: 7.724, 4: 7.1}


@pytest.mark.parametrize("log", [SIMPLE, JSON], ids=["simple", "json"])
def test_fairseq_writes_six_digits_of_a_million_updates(log):
    text = "\n".join(log)
    for field in ("num_updates=4", 'num_updates": "4', "num_updates 6", 'num_updates": "6'):
        text = text.replace(field, f"{field[:-1]}1.00004e+06")
    run = read_run("x", text.split("\n"))
    assert (run.training_loss[1_000_040], run.valid_bleu[1_000_040]) == (7.565, 1.25)


def test_a_log_of_fairseq_train_is_read(tmp_path):
    """A process of its own, as logs are set up when fairseq is imported."""
    for split, count in (("train", 40), ("valid", 5)):
        write_pairs(tmp_path, [(s, s) for s in random_sentences(count, count)], split)
    log = run(
        *("fairseq-train", preprocess(tmp_path, tmp_path / "bin"), "--user-dir", ROOT / "nar_plugins", "--cpu"),
        *("--task", "nar_translation", "--arch", "cmlm_tiny", "--criterion", "nar_loss", "--optimizer", "adam"),
        *(
            "--lr",
            "1e-3",
            "--max-tokens",
            "100",
            "--max-update",
            "3",
            "--log-interval",
            "1",
            "--no-save",
            "--num-workers",
            "0",
        ),
        *("--eval-bleu", "--validate-interval-updates", "2", "--share-all-embeddings", "--lr", "1e-3"),
    )
    found = read_run("x", log.split("\n"))
    assert [*found.training_loss] == [1, 2, 3] and [*found.valid_loss] == [*found.valid_bleu] == [2, 3]
    assert all(0 < loss < 30 for loss in [*found.training_loss.values(), *found.valid_loss.values()])


# -- the plot ----------------------------------------------------------------------------------------------------------


def test_there_is_a_panel_a_figure_and_a_line_a_run(tmp_path):
    pytest.importorskip("matplotlib")
    other = Run("y", {6: 8.0, 2: 9.0}, {}, {})
    figure = plot_runs([WANTED, other], tmp_path / "plot.png")
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "validation loss", "validation BLEU"]
    lines = [[line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert lines == [[[[2, 7.724], [4, 7.565]], [[2, 9], [6, 8]]], [[[3, 7.664], [6, 7.507]]], [[[3, 0.5], [6, 1.25]]]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["x", "y"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(plot_runs([other], tmp_path / "plot.png").axes) == 1


def test_a_name_is_no_formula_and_is_in_the_legend(tmp_path):
    pytest.importorskip("matplotlib")
    names = ["_run.log", "$x_$"]
    figure = plot_runs([WANTED._replace(name=name) for name in names], tmp_path / "plot.svg")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [" _run.log", r"\$x_\$"]


def test_the_command_draws_logs_by_name(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "a=b.log").write_text("\n".join(SIMPLE), encoding="utf-8")
    (tmp_path / "c.log").write_text("\n".join(JSON), encoding="utf-8")
    nar_curves.main([str(tmp_path / "a=b.log"), f"CMLM={tmp_path / 'c.log'}", "--out", str(tmp_path / "plot.svg")])
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "CMLM" in drawn and "a=b.log" in drawn


refusal = partial(own_refusal, nar_curves.main)


def test_what_cannot_be_drawn_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(nar_curves, "check_plot", lambda path, flag: None)
    (tmp_path / "log").write_text(f"{SIMPLE[0]}\n{SIMPLE[1]}\n", encoding="utf-8")
    said = refusal(f"x={tmp_path / 'log'}", "--out", "x.png")
    assert said == "nar-curves: x holds no loss and no BLEU: give the log of a fairseq-train run"
    assert refusal("no.log", "--out", "x.png") == "nar-curves: no file no.log"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refusal(tmp_path / "log", "--out", "x.png")
    assert said == "nar-curves: --out needs matplotlib: pip install 'nar-plugins[plots]'"


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"epoch": 1, "loss": null, "num_updates": "3"}', "loss None"),
        ('{"epoch": 1, "loss": "7.77.6", "num_updates": "3"}', "loss '7.77.6'"),
        ('{"epoch": 1, "loss": "7.7", "num_updates": "nan"}', "num_updates 'nan'"),
        ("epoch 001:     20 / 90 loss=7.x, num_updates=20, wps=3", "loss '7.x'"),
        ("epoch 001 | loss 7.7 | num_updates 1e999", "num_updates '1e999'"),
    ],
)
def test_a_figure_that_is_no_number_is_named(line, said):
    with pytest.raises(ValueError) as error:
        read_run("a.log", [line])
    assert str(error.value) == f"a.log: a line has {said}, which is no number: take it out of the log"
