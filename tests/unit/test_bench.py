"""nar-bench's table and plot, from made-up measurements."""
import sys
from types import SimpleNamespace

import pytest

from nar_plugins.cli.bench import main, table
from nar_plugins.measure.plots import Point, families, quality_against_passes
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import Output, System

QUALITY = score(["a b c d e"], [["a b c d e"]])


def rows(capsys, outputs) -> list:
    systems = [SimpleNamespace(name=f"s{i}", cuda=False) for i in range(len(outputs))]
    table(systems, outputs, [QUALITY] * len(outputs), [1, 32], [[10.0, 40.0], [100.0, 250.0]])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_milliseconds_ratios_and_wasted_masks(capsys):
    heads, _, first, second = rows(capsys, [Output(["x"], 5.0, None), Output(["x"], 2.0, 0.754)])
    assert dict(zip(heads, first))["masks wasted"] == "-"
    found = dict(zip(heads, second))
    assert found["masks wasted"] == "75 %" and found["passes"] == "2.0"
    assert found["sent/s, batch 32"] == "250.0" and found["ms/sent, batch 32"] == "4.0" and found["ms/sent, batch 1"] == "25.0"
    assert found["x s0, batch 1"] == "4.00" and found["x s0, batch 32"] == "2.50"


def test_no_column_of_masks_where_nobody_asks_any(capsys):
    heads = rows(capsys, [Output(["x"], 5.0, None), Output(["x"], 2.0, None)])[0]
    assert "masks wasted" not in heads


def test_what_is_wasted_is_that_of_the_decoding_alone():
    """A generator counts from its start; the output's share is of its own decoding."""
    system = object.__new__(System)
    system.dataset, system.batches = [0, 1], lambda size: []
    system.generator = SimpleNamespace(statistics={"masks": 100, "tokens": 1})
    system.string = str

    def decode(batches):
        system.generator.statistics.update(masks=140, tokens=11)
        return [(i, [{"tokens": [4], "steps": 3}]) for i in (1, 0)]

    system.decode = decode
    assert system.output() == Output(["[4]", "[4]"], 3, 0.75)


def test_systems_that_differ_in_their_last_word_are_a_family(tmp_path):
    points = [Point("ar", 9, 3), Point("adaptive 0.5", 2, 1), Point("adaptive 0.9", 4, 2), Point("adaptive 0.1", 1, 0)]
    found = families(points)
    assert [p.name[-3:] for p in found["adaptive"]] == ["0.1", "0.5", "0.9"] and found["ar"] == points[:1]
    pytest.importorskip("matplotlib")
    quality_against_passes(points, "BLEU", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_a_plot_without_matplotlib_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="--plot needs matplotlib: pip install"):
        main([str(tmp_path / "no-data"), "--system", "a", "no.pt", "", "--plot", str(tmp_path / "plot.png")])
