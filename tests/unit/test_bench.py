"""The table and the plot of nar-bench, and what a decoding counts for them."""

import logging
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from in_process import own_refusal

from nar_plugins.cli import bench
from nar_plugins.measure import memory
from nar_plugins.measure.examples import Example, evenly_spaced, page
from nar_plugins.measure.plots import Point, group, groups, quality_against_passes, quality_against_speed
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import Row, Timing, crossover
from nar_plugins.measure.systems import Output, System
from nar_plugins.measure.table import comparison, details

QUALITY = score(["a b c d e"], [["a b c d e"]])


MACHINE = {
    "device": "CPU",
    "cpu": "a processor",
    "instructions": "AVX2",
    "threads": 2,
    "python": "3.11",
    "versions": {"torch": "2.13"},
}


def cells(text: str) -> list:
    """Row -> heading -> cell, of a Markdown table."""
    lines = [line[1:-1] for line in text.splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.split(" | ")] for line in lines)
    return [dict(zip(heads, row)) for row in rows]


def timed(name: str, speeds: dict, output=None, autoregressive: bool = False) -> Row:
    """A row with these sentences per second by batch size."""
    system = SimpleNamespace(name=name, cuda=False, autoregressive=autoregressive, weight_bytes=lambda: 2_500_000)
    timings = {size: Timing(100, [[100 / speed]]) for size, speed in speeds.items()}
    return Row(name, "a.pt", [], system, output, output and QUALITY, timings)


def table(*outputs) -> list:
    """Row -> heading -> cell, of systems with 4 and 50 sentences a second (batch 1), 20 and 100 (batch 32)."""
    speeds = [{1: 4.0, 32: 20.0}, {1: 50.0, 32: 100.0}]
    rows = [timed(f"system {i}", *pair) for i, pair in enumerate(zip(speeds, outputs))]
    return cells(comparison(rows, [1, 32], MACHINE))


def test_milliseconds_a_sentence_follow_from_the_speed():
    first, second = table(Output(["a"], 9), Output(["a"], 3))
    assert [first[f"ms/sentence, batch {size}"] for size in (1, 32)] == ["250.0", "50.0"]
    assert [second[f"ms/sentence, batch {size}"] for size in (1, 32)] == ["20.0", "10.0"]
    assert second["x system 0, batch 1"] == "12.50" and second["sent/s, batch 32"] == "100.0"


def test_wasted_masks_have_a_column_where_a_system_counts_them():
    assert [row["masks wasted"] for row in table(Output(["a"], 9), Output(["a"], 3, 0.256))] == ["-", "26%"]
    assert all("masks wasted" not in row for row in table(Output(["a"], 9), Output(["a"], 3)))


def test_a_row_that_failed_has_dashes_and_the_reason():
    works = timed("works", {1: 4.0, 32: 20.0}, Output(["a"], 9))
    partly = timed("partly", {1: 8.0}, Output(["a"], 3))
    partly.errors = ["batch size 32, sentence 0: a | b"]
    failed = Row("failed", "b.pt", [], errors=["MemoryError: "])
    first, second, third = cells(comparison([failed, partly, works], [1, 32], MACHINE).replace("\\|", "!"))
    assert first == {**dict.fromkeys(first, "-"), "system": "failed", "error": "MemoryError:"}
    assert (second["sent/s, batch 1"], second["sent/s, batch 32"]) == ("8.0", "-")
    assert second["BLEU"] == "100.0" and second["error"] == "batch size 32, sentence 0: a ! b"
    assert (third["x partly, batch 1"], third["x partly, batch 32"], third["x failed, batch 1"]) == ("0.50", "-", "-")
    assert third["error"] == ""
    assert "error" not in cells(comparison([works], [1, 32], MACHINE))[0]


def test_a_name_ends_no_cell_and_no_line():
    row = timed("a|b\nc", {1: 4.0, 32: 20.0}, Output(["a"], 9))
    for text in (comparison([row], [1, 32], MACHINE), details([row], MACHINE)):
        assert all(found["system"] == "a!b c" for found in cells(text.replace("\\|", "!")))
    assert r"x a\|b c, batch 1 " in comparison([row], [1, 32], MACHINE)


def test_details_are_quartiles_and_percentiles():
    row = timed("A", {}, Output(["a"], 4, None, 10))
    seconds = [[i / 1000 for i in range(1, 101)], [i / 500 for i in range(1, 101)], [i / 250 for i in range(1, 101)]]
    row.timings[8] = Timing(202, seconds)
    (found,) = cells(details([row], MACHINE))
    assert found["batch"] == "8" and found["tokens/pass"] == "2.50" and found["weights, MB"] == "2.5"
    assert found["sent/s (quartiles)"] == "20.0 (15.0 to 30.0)"  # 40, 20 and 10
    wanted = [f"{1000 * value:.1f}" for value in np.percentile(seconds, (50, 90, 99))]
    assert [found["ms a batch: p50"], found["p90"], found["p99"]] == wanted
    assert "peak memory, MB" not in found
    row.memory = 3_000_000
    assert cells(details([row], MACHINE))[0]["peak memory, MB"] == "3"
    assert Timing(1, [[0.5]]).latency(99) == 0.5 and Timing(1, [[0.5]]).quartiles() == (2, 2)


def test_a_memory_that_cannot_be_measured_is_the_rows_error(monkeypatch):
    rows = [timed(name, {1: 4.0}, Output(["a"], 9)) for name in "ABC"]
    rows[2].output = None  # its decoding has failed before

    def in_a_process(name, *job):
        if name == "A":
            raise RuntimeError("no\nprocess")
        return 5_000_000

    monkeypatch.setattr(memory, "in_a_process", in_a_process)
    memory.measure_memory(rows, "data", 1)
    assert [row.memory for row in rows] == [None, 5_000_000, None]
    assert [row.errors for row in rows] == [["memory: RuntimeError: no process"], [], []]
    assert [row["peak memory, MB"] for row in cells(details(rows[:2], MACHINE))] == ["-", "5"]


def test_a_process_that_is_killed_is_named(monkeypatch):
    def submit(*job):
        raise BrokenProcessPool("a child terminated")

    monkeypatch.setattr(memory.ProcessPoolExecutor, "submit", submit)
    with pytest.raises(ValueError, match="^the process was killed, perhaps for lack of memory$"):
        memory.in_a_process("A")


@pytest.mark.parametrize(
    "speeds, said",
    [
        ((9, 9, 9), "faster than every autoregressive system at every batch size (timed: 1, 8, 32)"),
        ((9, 3, 4), "from batch size 8 on an autoregressive system (AR 2) is faster (timed: 1, 8, 32)"),
        ((1, 2, 4), "an autoregressive system (AR 1) is faster at every batch size (timed: 1, 8, 32)"),
        ((9, 3, 9), "an autoregressive system is faster at batch sizes 8 only (timed: 1, 8, 32)"),
    ],
)
def test_the_batch_size_is_said_from_which_an_autoregressive_system_is_faster(speeds, said):
    slow = timed("AR 1", {32: 3, 8: 3, 1: 2}, Output(["a"], 3), True)
    fast = timed("AR 2", {32: 8, 8: 4, 1: 1}, Output(["a"], 3), True)
    one = timed("NAT", dict(zip((1, 8, 32), speeds)), Output(["a"], 1))
    assert crossover([slow, one, fast]) == [f"NAT: {said}"]
    assert crossover([one]) == crossover([slow, fast]) == []


def test_outputs_are_kept_under_the_systems_names(tmp_path):
    outputs = [Output(["a", "", "b"], 1), Output(["c", "d", "e"], 1)]
    rows = [timed(f"one, tau {tau}", {}, output) for tau, output in zip((0.5, 0.9), outputs)]
    bench.write_outputs(tmp_path / "new", rows)
    assert (tmp_path / "new" / "one, tau 0.5.txt").read_text() == "a\n\nb\n"  # a blank hypothesis is a line, too
    assert (tmp_path / "new" / "one, tau 0.9.txt").read_text() == "c\nd\ne\n"


@pytest.mark.parametrize("names", [("a", "a"), ("a/b", "c")])
def test_names_that_are_no_files_are_refused_before_anything_is_measured(tmp_path, names):
    systems = [part for name in names for part in ("--system", name, "no.pt", "")]
    with pytest.raises(SystemExit, match="--output needs names that differ"):
        bench.main(["no data", "--output", str(tmp_path), *systems])
    logging.disable(logging.NOTSET)


class StandIn(System):
    """Two sentences; a decoding counts as its generator does."""

    def __init__(self, **counts):
        self.dataset = [0, 1]
        self.generator = SimpleNamespace(statistics=SimpleNamespace(**counts))

    def batches(self, size, sentences=0):
        return []

    def decode(self, batches):
        counts = self.generator.statistics
        for name, more in (("mask_positions", 40), ("tokens", 10)):
            if hasattr(counts, name):
                setattr(counts, name, getattr(counts, name) + more)
        return [(i, [{"tokens": torch.tensor([4, 2]), "steps": 5}]) for i in (1, 0)]

    def string(self, tokens):
        return "text"


@pytest.mark.parametrize(
    "counts, wasted",
    [
        (dict(mask_positions=0, tokens=0), 0.75),
        (dict(mask_positions=1000, tokens=1000), 0.75),  # what it decoded before does not count
        (dict(tokens=5), None),
        ({}, None),
    ],
)
def test_wasted_masks_are_those_of_the_decoding(counts, wasted):
    assert StandIn(**counts).output() == Output(["text", "text"], 5, wasted, 2)


# -- the plot ----------------------------------------------------------------------------------------------------------


def test_systems_whose_names_differ_in_a_last_number_are_a_group():
    names = ["adaptive 0.9", "adaptive 0.5", "cascade -0.5", "CMLM, R = 4", "CMLM, R = 10", "AR greedy", "NAT"]
    assert [group(name) for name in names] == [
        "adaptive",
        "adaptive",
        "cascade",
        "CMLM, R",
        "CMLM, R",
        "AR greedy",
        "NAT",
    ]


ROWS = [
    Point("ar, beam 5", 9, 30, "ar, beam"),
    Point("tau 0.9", 5, 29, "tau"),
    Point("tau 0.1", 1, 20, "tau"),
    Point("tau 0.5", 3, 25, "tau"),
]


def test_a_group_goes_from_few_passes_to_many():
    assert groups(ROWS) == {"ar, beam": ROWS[:1], "tau": [ROWS[2], ROWS[3], ROWS[1]]}


def test_the_plot_has_every_point_and_a_line_a_group(tmp_path):
    pytest.importorskip("matplotlib")
    (axes,) = quality_against_passes(ROWS, tmp_path / "plot.png").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[9, 30]], [[1, 20], [3, 25], [5, 29]]]
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.5", "0.9"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ar, beam 5", "tau"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_panels_of_speed_are_the_smallest_and_the_largest_batch():
    speeds = [[10.0, 20.0], [2.0, 3.0], [5.0, 50.0]]
    panels = bench.speed_panels(ROWS[:2], [8, 1, 32], speeds)
    assert [size for size, _ in panels] == [1, 32]
    assert [[point.x for point in points] for _, points in panels] == [[1, 1.5], [1, 10]]
    assert [point.quality for point in panels[0][1]] == [30, 29]
    assert [size for size, _ in bench.speed_panels(ROWS[:2], [8], speeds[:1])] == [8]


def test_the_plot_of_speed_has_a_panel_a_batch_size_with_a_logarithmic_axis(tmp_path):
    pytest.importorskip("matplotlib")
    slow, fast = ([point._replace(x=point.x * factor) for point in ROWS] for factor in (1, 2))
    figure = quality_against_speed([(1, slow), (32, fast)], "AR greedy", tmp_path / "plot.png")
    assert [axes.get_xlabel() for axes in figure.axes] == [f"speed (x AR greedy), batch {size}" for size in (1, 32)]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    (_, lower, *_), (_, upper, *_) = (axes.lines for axes in figure.axes)
    assert lower.get_xydata().tolist() == [[1, 20], [3, 25], [5, 29]]
    assert upper.get_xydata().tolist() == [[2, 20], [6, 25], [10, 29]]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["ar, beam 5", "tau"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# what nar-bench says of flags before it looks at the data, which are not there
refusal = partial(own_refusal, bench.main, "no-data", "--system", "a", "no.pt", "")


@pytest.mark.parametrize("flag", ["--plot", "--plot-speed"])
def test_no_matplotlib_is_said_before_the_measuring(flag, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refusal(flag, tmp_path / "plot.png")
    assert said == f"nar-bench: {flag} needs matplotlib: pip install 'nar-plugins[plots]'"


@pytest.mark.parametrize("flag", ["--plot", "--plot-speed"])
def test_a_plot_that_cannot_be_written_is_refused_before_the_measuring(flag, tmp_path):
    pytest.importorskip("matplotlib")
    assert "the name must end in one of" in refusal(flag, tmp_path / "plot.xyz")
    assert f"{flag} {tmp_path / 'no' / 'plot.png'}: no folder '{tmp_path / 'no'}'" in refusal(
        flag, tmp_path / "no" / "plot.png"
    )
    (tmp_path / "plot.png").mkdir()
    said = refusal(flag, tmp_path / "plot.png")
    assert said == f"nar-bench: {flag} {tmp_path / 'plot.png'}: this is a folder, and not a file"


# -- the page of examples ----------------------------------------------------------------------------------------------


def test_examples_are_evenly_spaced():
    assert evenly_spaced(4, 10) == [0, 2, 5, 7]
    assert evenly_spaced(5, 3) == [0, 1, 2]


def test_a_page_shows_texts_as_they_are():
    first = Example(0, "eins | <unk>", ["one * \ufdd0"], [("AR", "one_a"), ("CMLM, R = 4", "")])
    second = Example(7, "zwei", ["two", "2"], [("AR", "two"), ("CMLM, R = 4", "a [b]")])
    text = page([first, second])
    rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# Examples\n\n## Sentence 0\n") and "\n## Sentence 7\n" in text
    assert [row for row in rows if set(row[1]) != {"-"}] == [
        ["", "text"],
        ["source", "eins \\| &lt;unk>"],
        ["reference", "one \\* &lt;unk>"],
        ["AR", "one\\_a"],
        ["CMLM, R = 4", ""],
        ["", "text"],
        ["source", "zwei"],
        ["reference 1", "two"],
        ["reference 2", "2"],
        ["AR", "two"],
        ["CMLM, R = 4", "a \\[b\\]"],
    ]


def test_a_page_that_cannot_be_written_is_refused_before_the_measuring(tmp_path):
    said = refusal("--examples", tmp_path / "no" / "page.md")
    assert said == f"nar-bench: --examples {tmp_path / 'no' / 'page.md'}: no folder '{tmp_path / 'no'}'"
    assert refusal("--examples", tmp_path).endswith(": this is a folder, and not a file")
    assert refusal("--json", tmp_path).endswith(": this is a folder, and not a file")
    (tmp_path / "file").write_text("")
    said = f"nar-bench: --output {tmp_path / 'file' / 'a.txt'}: no folder '{tmp_path / 'file'}'"
    assert refusal("--output", tmp_path / "file") == said
    assert refusal("--examples-count", "0") == "nar-bench: --examples-count 0: at least 1"
