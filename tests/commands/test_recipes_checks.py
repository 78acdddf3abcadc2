"""What the recipes ask of this machine before they add a row to a table (examples/lib.sh)."""

import sys

import pytest
import torch
from shell import bash

from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.int8 import adds_in_16_bits

VENV = sys.prefix
WANTED = {"int8_runs": int8_lacks(torch.device("cpu")) is None, "onnx_int8_runs": not adds_in_16_bits()}


@pytest.mark.parametrize("check", WANTED)
def test_a_check_says_what_the_package_says(check):
    said = bash("-c", f". examples/lib.sh; if {check}; then echo yes; else echo no; fi", VENV=VENV)
    assert said == ("yes\n" if WANTED[check] else "no\n")
    assert bash("-c", f". examples/lib.sh; dry=1; {check} && echo yes", VENV=VENV) == "yes\n"


def test_a_check_that_cannot_be_made_ends_the_recipe():
    asked = "if holds 'import nothing_of_this_name'; then echo yes; else echo no; fi"
    said = bash("-c", f". examples/lib.sh; {asked}", expect=2, VENV=VENV)
    assert "No module named 'nothing_of_this_name'" in said and "Python cannot say what runs here" in said
