"""One ``bang`` checkpoint, trained and decoded by every policy through the real commands, on a task with two right
answers.
"""

import os
import re
import subprocess

import forked
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Policy -> (percent of valid outputs, passes, outputs equal to ``ar``'s)."""
    environment = {**os.environ, "VENV": str(forked.commands().parent), "DEVICE": "--cpu"}
    done = subprocess.run(
        ["bash", "examples/bang_toy/run.sh", tmp_path_factory.mktemp("toy"), "1000"],
        cwd=ROOT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    found = re.findall(r"^\| (.+?) \| ([\d.]+) % \| ([\d.]+) \| (\d+) of 200 \|$", done.stdout, re.MULTILINE)
    return {name: (float(valid), float(passes), int(equal)) for name, valid, passes, equal in found}


def test_one_token_at_a_time_is_right(rows):
    assert rows["ar"][0] >= 99


@pytest.mark.parametrize("tau", ["0.7", "0.9", "0.99"])
def test_adaptive_is_as_right_in_two_passes(rows, tau):
    valid, passes, _ = rows[f"adaptive {tau}"]
    assert valid >= 99 and passes <= 2.1


def test_prefix_needs_the_first_token_alone(rows):
    valid, passes, _ = rows["prefix 1"]
    assert valid >= 99 and passes == 2


def test_all_at_once_mixes_the_answers(rows):
    valid, passes, _ = rows["nar"]
    assert valid <= 50 and passes == 1
    assert rows["block 2"][0] > rows["block 4"][0]
    assert rows["block 2"][1] > rows["block 4"][1]


@pytest.mark.parametrize("block", [2, 4, 8])
def test_verify_says_what_greedy_search_says(rows, block):
    _, passes, equal = rows[f"verify {block}"]
    assert equal == 200 and passes < rows["ar"][1]


def test_cascade_repairs_what_one_pass_got_wrong(rows):
    assert rows["cascade"][0] >= 99
