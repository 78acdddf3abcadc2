"""The code has one form, kept by ruff (ruff.toml); no place is exempt from the formatter."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff_finds_nothing(arguments):
    found = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_is_exempt_from_the_formatter():
    exempt = "fmt: "  # the next word is skip, off or on
    for folder in ("nar_plugins", "tests", "examples", "scripts", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                assert f"# {exempt}" not in line, f"{file.relative_to(ROOT)}:{number}"
