"""nar-report: figures of generated text, the plots, and a page that needs nothing else."""

import base64
import json
import logging
import re
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nar_plugins.cli import report as nar_report
from nar_plugins.measure.generations import read_generation
from nar_plugins.measure.plots import Point, frontier, histogram, quality_against_speed, repetition_plot
from nar_plugins.measure.record import read_record
from nar_plugins.measure.report import Material, speed

# of --retain-iter-history: the best hypothesis comes first; T- and H- are words, E- sub-words
GROWING = [
    "S-0\teins zwei",
    "T-0\tone two three",
    "H-0\t-0.1\tone two two",
    "D-0\t-0.1\tone two two",
    "P-0\t-0.1 -0.2",
    "E-0_0\tone",
    "E-0_1\tone two two",
    "E-0_2\tone two two",
    "H-0\t-0.9\tworse",
    "E-0_0\tworse",
    "T-1\ta",
    "H-1\t-0.1\ta b c",
    "D-1\t-0.1\ta b c",
    "E-1_0\ta b",
    "E-1_1\ta b c",
]
CANVAS = ["T-4\tx y", "H-4\t-1\tx y", "E-4_0\tx x x y", "E-4_1\tx y x y", "T-5\tz", "H-5\t-1\tz z", "E-5_0\tz z"]
LOGGED = "INFO | blockwise: 9 sentences, 7 decoder calls; 2.3 tokens a call of a sentence; mean accepted block 1.5 "
LOGGED += "after the first call (tokens:calls 1:3 4:2)"
BENCH = {
    "command": ["nar-bench", "bin", "<x>"],
    "date": "2026-11-29T10:00:00+00:00",
    "machine": {"device": "CPU", "cpu": "A & B"},
    "systems": [
        {"name": "AR <b>", "bleu": 30.0, "chrf": 50.0, "passes": 9.0},
        {"name": "CMLM, R = 4", "bleu": 28.0, "chrf": 49.0, "passes": 4.0},
        {"name": "bad", "bleu": None, "chrf": None, "passes": None},
    ],
}
for system, speeds in zip(BENCH["systems"], ((10.0, 100.0), (30.0, 60.0), ())):
    system["batch_sizes"] = {str(n): {"sentences_per_second": {"median": s}} for n, s in zip((1, 32), speeds)}
LOG = "2026 | INFO | train_inner | epoch 001:      2 / 6 loss=7.724, words=5.667, num_updates=2, lr=0.001"


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_growing_history_has_accepted_lengths_with_the_end_in_the_last():
    found = read_generation("x", GROWING)
    assert found.accepted == Counter({2: 2, 1: 1})  # one two two (2), </s> (1); c and </s> (2)
    assert found.length_errors == Counter({0: 1, 2: 1})
    assert found.repetition == pytest.approx(1 / 6) and found.repetition_by_pass == []


def test_text_without_blanks_is_said(caplog):
    line = "\u6211\u4eec\u4eca\u5929\u53bb\u5317\u4eac\u53c2\u52a0\u5927\u4f1a"
    read_generation("zh.out", [f"T-0\t{line}", f"H-0\t-0.1\t{line}"])
    assert "zh.out has hardly a blank" in caplog.text and "without --remove-bpe" in caplog.text
    caplog.clear()
    for lines in (GROWING, CANVAS, [f"T-0\t{' '.join(line)}", f"H-0\t-0.1\t{' '.join(line)}"]):
        read_generation("x", lines)
    assert not caplog.records


def test_a_line_ends_at_a_newline_only(tmp_path):
    (tmp_path / "out").write_bytes("\ufeffT-0\ta\u2028b c\r\nH-0\t-1\ta\x85b c\r\n".encode())
    ((_, lines),) = nar_report.named_lines([str(tmp_path / "out")], "--generated")
    assert read_generation("x", lines).length_errors == Counter({0: 1})


def test_a_canvas_has_repetition_by_pass():
    found = read_generation("x", CANVAS)
    assert found.accepted == Counter() and found.length_errors == Counter({0: 1, 1: 1})
    assert found.repetition == pytest.approx(1 / 4)
    assert found.repetition_by_pass == pytest.approx([3 / 6, 1 / 6])  # a finished sentence counts with its last pass


def test_without_a_history_the_log_of_blockwise_has_the_accepted_lengths():
    assert read_generation("x", ["H-0\t-1\ta", LOGGED]).accepted == Counter({1: 3, 4: 2})
    assert read_generation("x", [*GROWING, LOGGED]).accepted == Counter({2: 2, 1: 1})
    assert read_generation("x", ["H-0\t-1\ta"]).accepted == Counter()


def test_the_frontier_has_the_points_that_no_other_beats():
    points = [
        Point(name, x, quality, "") for name, x, quality in (("a", 1, 30), ("b", 2, 20), ("c", 3, 25), ("d", 3, 9))
    ]
    assert [point.name for point in frontier(points)] == ["a", "c"]
    assert [point.name for point in frontier([*points, Point("e", 4, 30, "")])] == ["e"]
    assert frontier([]) == []


# -- plots -------------------------------------------------------------------------------------------------------------


def test_the_plot_of_speed_has_its_frontier(tmp_path):
    pytest.importorskip("matplotlib")
    points = [Point("a", 1, 30, "a"), Point("b", 2, 20, "b"), Point("c", 3, 25, "c")]
    (axes,) = quality_against_speed([(1, points)], "a", tmp_path / "x.png", with_frontier=True).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["frontier"] == [[1, 30], [3, 25]]


def test_a_histogram_has_shares_that_stand_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    counts = [("_a", Counter({1: 3, 2: 1})), ("b", Counter({-1: 5}))]
    (axes,) = histogram(counts, tmp_path / "x.png", "length", "calls").axes
    bars = [[(p.get_x() + p.get_width() / 2, p.get_height()) for p in group] for group in axes.containers]
    assert [pair for group in bars for pair in group] == [
        pytest.approx(pair) for pair in ((0.8, 0.75), (1.8, 0.25), (-0.8, 1))
    ]
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_a", "b"]
    assert axes.get_ylabel() == "share of calls"


def test_repetition_by_pass_has_a_panel_where_there_is_a_history(tmp_path):
    pytest.importorskip("matplotlib")
    figure = repetition_plot([("a", 0.1, ()), ("b", 0.2, (0.4, 0.2))], tmp_path / "x.png")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.1, 0.2]
    assert [line.get_xydata().tolist() for line in figure.axes[1].lines] == [[[1, 0.4], [2, 0.2]]]
    assert len(repetition_plot([("a", 0.1, ())], tmp_path / "x.png").axes) == 1


# -- the page ----------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def write(folder, **files):
    """Files with lines, or JSON."""
    for name, content in files.items():
        text = "\n".join(content) if isinstance(content, list) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")


def test_the_page_holds_all_plots_and_loads_nothing(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write(tmp_path, log=[LOG], bench=BENCH, grown=GROWING, canvas=CANVAS)
    out = tmp_path / "new" / "report"
    files = [tmp_path / name for name in ("log", "bench", "grown", "canvas")]
    generated = [f"<i>A&B={files[2]}", f"canvas={files[3]}"]
    arguments = ["--log", f"AR={files[0]}", "--bench", files[1], "--generated", *generated, "--out", out]
    nar_report.main([*map(str, arguments)])
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    images = ["curves", "speed", "passes", "accepted", "lengths", "repetition"]
    assert {path.name for path in out.iterdir()} == {"report.html", *(f"{name}.png" for name in images)}
    text = (out / "report.html").read_text(encoding="utf-8")
    tags = Tags(text).found
    inline = [base64.b64decode(of["src"].partition(",")[2]) for tag, of in tags if tag == "img"]
    assert inline == [(out / f"{name}.png").read_bytes() for name in images]
    assert all(of["src"].startswith("data:image/png;base64,") and of["alt"] for tag, of in tags if tag == "img")
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "i", "b", "x"} and "http" not in text.replace(
        "http-equiv", ""
    )
    assert "AR &lt;b&gt;" in text and "A &amp; B" in text and "&lt;x&gt;" in text and "Left out" not in text
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", text)]
    assert cells[:6] == ["AR <b>", "30.0", "50.0", "9.0", "10.0", "100.0"] and cells[-5:] == ["-"] * 5


def test_what_is_absent_is_left_out_and_said(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write(tmp_path, generated=["H-0\t-1\ta a"])
    nar_report.main(["--generated", f"x={tmp_path / 'generated'}", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    *left, page = capsys.readouterr().out.splitlines()
    assert page == str(tmp_path / "out" / "report.html") and len(left) == 5
    for line, what in zip(left, ("Training", "BLEU against speed", "BLEU against passes", "Accepted", "Length errors")):
        assert line.startswith(f"left out: {what}") and unescape(text).count(line.partition(": ")[2]) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "repetition.png"}


def refusal(*arguments) -> str:
    """The one line that nar-report says."""
    with pytest.raises(SystemExit) as error:
        nar_report.main([*map(str, arguments)])
    logging.disable(logging.NOTSET)  # main silences the log of its process
    assert "\n" not in error.value.code
    return error.value.code.removeprefix("nar-report: ")


def test_bad_input_is_one_line_each(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, empty=["x"], text=["no { JSON"], list=[], other={"a": 1}, bench=BENCH, generated=["H-0\t-1\ta"])
    assert refusal("--out", "out").startswith("there is nothing to plot. Training curves: no --log was given. BLEU")
    assert refusal("--generated", "no", "--out", "out") == "no file no"
    assert refusal("--generated", "empty", "--out", "out") == (
        "empty holds no line H-: give what fairseq-generate printed"
    )
    assert refusal("--log", "empty", "--out", "out").startswith("empty holds no loss and no BLEU")
    assert refusal("--bench", "text", "--out", "out").startswith("text is no JSON of nar-bench --json: Expecting")
    assert refusal("--bench", "other", "--out", "out") == "other is no JSON of nar-bench --json: it has no 'systems'"
    assert refusal("--generated", "generated", "--out", "text") == "--out text: this is a file, and not a folder"
    said = refusal("--generated", "a=generated", "a=empty", "--out", "out")
    assert said == "--generated: two files are named a: give NAME=FILE"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert (
        refusal("--bench", "bench", "--out", "out") == "nar-report needs matplotlib: pip install 'nar-plugins[plots]'"
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"name": 3}, "a system has no name"),
        ({"bleu": "x"}, "system s has no figure 'bleu'"),
        ({"passes": float("nan")}, "system s has no figure 'passes'"),
        ({"batch_sizes": []}, "system s has no 'batch_sizes' with sentences_per_second"),
        ({"batch_sizes": {"1": {"sentences_per_second": {"median": 0}}}}, "system s has no 'batch_sizes' with"),
        ({"batch_sizes": {"x": {"sentences_per_second": {"median": 1}}}}, "system s has no 'batch_sizes' with"),
    ],
)
def test_a_record_with_another_content_is_refused(tmp_path, change, said):
    system = {"name": "s", "bleu": 1.0, "chrf": 1, "passes": None, "batch_sizes": {}}
    (tmp_path / "x").write_text(json.dumps({"systems": [system]}), encoding="utf-8")
    assert read_record(tmp_path / "x")["systems"] == [system]
    (tmp_path / "x").write_text(json.dumps({"systems": [{**system, **change}]}), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"is no JSON of nar-bench --json: {said}")):
        read_record(tmp_path / "x")


def test_what_is_around_the_systems_of_a_record_is_checked(tmp_path):
    system = {"name": "s", "bleu": 1.0, "chrf": 1, "passes": None, "batch_sizes": {}}
    for content, said in (
        (json.dumps({"systems": [system], "command": 5}), "its 'command' is int"),
        (json.dumps({"systems": [system], "machine": ["x"]}), "its 'machine' is list"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ):
        (tmp_path / "x").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"is no JSON of nar-bench --json: {said}"):
            read_record(tmp_path / "x")


def test_systems_of_other_batch_sizes_are_not_compared():
    times = {"sentences_per_second": {"median": 3}}
    systems = [{"name": size, "bleu": 1.0, "passes": 1, "batch_sizes": {size: times}} for size in ("1", "32")]
    material = Material([], {"systems": systems}, [])
    assert speed(Path(), material) == "BLEU against speed: no system of --bench has both"
