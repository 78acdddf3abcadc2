"""The table of two commits' benchmarks: medians, ratios, and a stop where the tables do not match."""

import pytest
from conftest import script

compare_commits = script("benchmarks/compare_commits.py")


def test_medians_and_ratios():
    old = [["batch 1   100 ms   2.00 x"], ["batch 1   300 ms   2.00 x"], ["batch 1   1,000 ms   4.00 x"]]
    new = [["batch 1   90 ms   2.00 x"], ["batch 1   330 ms   1.00 x"], ["batch 1   400 ms   3.00 x"]]
    table = compare_commits.compared(old, new).splitlines()
    assert table == ["batch 1   330 ms   2 x", "    new / old: 1.000 1.100 1.000"]


def test_names_and_versions_are_no_numbers():
    line = "cmlm_2 float32 torch 2.13.0 R=10: 12.5 ms"
    assert compare_commits.numbers(line)[-1] == 12.5 and 32 not in compare_commits.numbers(line)


@pytest.mark.parametrize("new", [[["a 1"]], [["a 1 2", "b 2"]]])
def test_tables_that_do_not_match_are_refused(new):
    with pytest.raises(SystemExit, match="compare_commits: "):
        compare_commits.compared([["a 1", "b 2"]], new)
