"""Nothing in the repository points outside it, and its shell scripts are well-formed."""

import re
import subprocess

import pytest
from conftest import ROOT

FOLDERS = ("nar_plugins", "tests", "examples", "scripts", "benchmarks", "docs", "findings", ".ci")
TEXT = {".py", ".sh", ".md", ".txt", ".toml", ".ini", ".cfg", ".yml", ""}
# The folder of test inputs beside the checkout, which may be missing; the tests that want it are then skipped.
ALLOWED = {"tests/conftest.py", "tests/commands/test_cases.py"}
OUTSIDE = re.compile(
    r"share[d]/|\"share[d]\"|spec[s]/|\bspec [A-D](\.\d+)?\b"  # folders that are not of this repository
    r"|\$root/\.\.|\.\./\.\./\.\./"  # above the repository's root
    r"|/(?:home|root|Users)/\w|/wor[k]/(?:main|wt)\b"  # a path of one machine
)


def tracked_texts():
    for path in [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        if path.is_file() and path.suffix in TEXT and path.name != ".git" and "__pycache__" not in path.parts:
            yield path


def outside(text: str):
    """The first reference to a place outside the repository: its line and its words, or None."""
    match = OUTSIDE.search(text)
    return match and (text.count("\n", 0, match.start()) + 1, match.group())


def test_nothing_refers_to_a_file_outside_the_repository():
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in tracked_texts()}
    assert len(texts) > 150
    assert {name: outside(text) for name, text in texts.items() if name not in ALLOWED and outside(text)} == {}


@pytest.mark.parametrize(
    "text", ["${1:-$root" + "/../data}", "see specs" + "/bang.md, D", "(spec" + " A.6)", "/home" + "/me/x"]
)
def test_a_reference_outside_would_be_found(text):
    assert outside(f"a\n{text}") is not None and outside(f"a\n{text}")[0] == 2
    assert outside("examples/../scripts/spm.py, the specification, $root/work, a shared dictionary") is None


SHARED = [ROOT / "examples" / "lib.sh", ROOT / "examples" / "recipe.sh"]
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shell_script_is_well_formed(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_every_recipe_uses_the_shared_functions():
    recipes = [path for path in SCRIPTS if "examples" in path.parts and path not in SHARED]
    assert len(recipes) > 30
    for path in recipes:
        sourced = r'^\. "\$\(dirname "\$\{BASH_SOURCE\[0\]\}"\)(/\.\.)?/(lib|recipe)\.sh"$'
        assert len(re.findall(sourced, path.read_text(encoding="utf-8"), re.M)) == 1, path


@pytest.mark.parametrize("kind", [r"^(\w+)\(\) ", r"^(\w+)="], ids=["functions", "variables"])
def test_no_recipe_takes_a_name_of_the_shared_ones(kind):
    """Those of recipe.sh are taken where it is sourced; but `task`, which a recipe may replace."""
    lib, recipe = (set(re.findall(kind, path.read_text(encoding="utf-8"), re.M)) - {"task"} for path in SHARED)
    assert {"fail", "check"} <= lib or {"root", "device"} <= lib
    assert {"decode", "plan"} <= recipe or {"mini", "smooth"} <= recipe
    assert not lib & recipe
    for path in SCRIPTS:
        if "examples" in path.parts and path not in SHARED:
            text = path.read_text(encoding="utf-8")
            shared = lib | recipe if '/recipe.sh"\n' in text else lib
            assert not shared & set(re.findall(kind, text, re.M)), path


def test_the_gpu_script_names_its_commands():
    done = subprocess.run(["bash", "scripts/gpu.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "gpu.sh: pack, install or measure, not '--help'\n")
