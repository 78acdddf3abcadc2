"""``scripts/setup.sh`` with a stand-in for Python and pip: which fairseq is taken, and what is said without one."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

TOOLS = "awk bash cat chmod cksum cut date dirname env grep ls mkdir mktemp rm sed tail".split()
FILES = ("setup.py", "constraints.txt", "scripts/setup.sh", "scripts/prebuilt.txt", "scripts/pythons.sh")
# Another version than it is, a new environment in a moment, and a list of what pip was asked for. With PIP_FIND_LINKS
# the real pip installs what has hashes, from that folder only.
PYTHON = f"""#!{sys.executable}
import os, runpy, shutil, sys
version, arguments = os.environ["STUB_VERSION"], sys.argv[1:]
if arguments[:1] == ["-I"]:
    sys.exit(0)
if arguments[0] == "-c":
    if "version_info" in arguments[1]:
        sys.version_info = (*map(int, version.split(".")), 0)
    if "Python.h" in arguments[1]:
        sys.exit(os.environ["STUB_HEADERS"] != "yes")
    if "import fairseq" not in arguments[1]:  # the last look, at what was installed
        exec(arguments[1])
elif arguments[:2] == ["-m", "venv"]:
    os.makedirs(arguments[-1] + "/bin")
    shutil.copy(__file__, arguments[-1] + "/bin/python")
    open(arguments[-1] + "/pyvenv.cfg", "w").close()
elif arguments[:2] == ["-m", "pytest"]:
    print("asked for", *arguments[2:])
    print(version, "passed")
    sys.exit(version == "3.12")
elif "--version" not in arguments:
    with open(os.environ["STUB_LOG"], "a") as log:
        print(*arguments[2:], "<", os.environ.get("PYTHONPATH", ""), file=log)
    if "--require-hashes" in arguments and "PIP_FIND_LINKS" in os.environ:
        sys.argv[1:] = arguments[2:] + ["--no-index", "--target", os.environ["STUB_LOG"] + ".site"]
        sys.path.pop(0)
        runpy.run_module("pip", run_name="__main__")
"""


class Machine:
    """A project with set-up's files only, and a PATH with a stand-in Python."""

    def __init__(self, folder: Path):
        self.folder, self.bin, self.project, self.log = folder, folder / "bin", folder / "project", folder / "pip.log"
        (self.project / "scripts").mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.project / name)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.program("python", PYTHON)
        self.program("df", "#!/bin/sh\necho; echo - - - 99999999\n")
        self.system("Linux x86_64")

    def program(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def system(self, name: str) -> None:
        self.program("uname", f"#!/bin/sh\necho {name}\n")

    def compiler(self) -> None:
        self.program("cc")
        self.program("c++")

    def set_up(self, version: str, expect: int = 0, headers: bool = True, **variables) -> str:
        """What set-up prints, both streams."""
        return self.bash("setup.sh", version, expect=expect, headers=headers, **variables)

    def bash(self, script: str, version: str, *arguments, expect: int = 0, headers: bool = True, **variables) -> str:
        """What a script prints, both streams."""
        self.log.unlink(missing_ok=True)
        environment = {"PATH": str(self.bin), "PYTHON": "python", "STUB_VERSION": version, "STUB_LOG": str(self.log)}
        environment["STUB_HEADERS"] = "yes" if headers else "no"
        done = subprocess.run(
            [self.bin / "bash", self.project / "scripts" / script, *arguments],
            env={**environment, **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == expect, done.stdout
        return done.stdout

    def refusal(self, version: str, **variables) -> str:
        """The one line of a set-up that ends before pip is asked for anything."""
        (line,) = self.set_up(version, 1, **variables).splitlines()[-1:]
        assert not self.log.exists()
        assert line.startswith("setup.sh: ")
        return line[len("setup.sh: ") :]

    def installed(self) -> list:
        """pip's calls about fairseq, without the options that all have."""
        calls = [line for line in self.log.read_text().splitlines() if "fairseq" in line or "prebuilt" in line]
        return [
            call.replace("install -q --disable-pip-version-check ", "").replace("-c constraints.txt ", "").strip()
            for call in calls
        ]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


GONE = "uninstall -q -y --disable-pip-version-check fairseq fairseq-fixed ve-fairseq <"
BUILD = "--no-cache-dir --no-deps --force-reinstall"
WHEEL = "--no-deps --only-binary :all: --require-hashes -r scripts/prebuilt.txt <"
REST = "--no-build-isolation -e .[dev,plots]"


@pytest.mark.parametrize(
    "version, build, name",
    [
        ("3.9", BUILD, "fairseq"),
        ("3.10", BUILD, "fairseq"),
        ("3.11", f"--no-build-isolation {BUILD}", "fairseq-fixed"),
        ("3.12", f"--no-build-isolation {BUILD}", "fairseq-fixed"),
        ("3.13", f"--no-build-isolation {BUILD}", "fairseq-fixed"),
    ],
)
def test_fairseq_is_compiled_where_there_is_a_compiler(version, build, name, machine):
    machine.compiler()
    assert "[3/4] fairseq: compiling" in machine.set_up(version)
    stand_in = f" {machine.project}/scripts/without_torch" if version == "3.13" else ""
    assert machine.installed() == [GONE, f"{build} {name} <{stand_in}", f"{REST} {name} <"]
    assert machine.set_up(version) == "" and not machine.log.exists()  # a second run has nothing to do


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_without_a_compiler_the_prebuilt_fairseq_is_taken_and_said(version, machine):
    output = machine.set_up(version)
    assert output.startswith(
        "fairseq is taken prebuilt, because to compile it needs a C++ compiler and there is no 'cc': install one"
    )
    assert "[3/4] fairseq: prebuilt, ve-fairseq==0.12.3, not compiled here" in output
    assert machine.installed() == [GONE, WHEEL, f"{REST} ve-fairseq <"]


def test_without_pythons_headers_the_prebuilt_fairseq_is_taken_and_said(machine):
    machine.compiler()
    output = machine.set_up("3.12", headers=False)
    assert output.startswith("fairseq is taken prebuilt, because to compile it needs Python's headers: install them")
    assert machine.installed()[1] == WHEEL


def test_an_environment_keeps_its_fairseq_until_another_is_asked_for(machine):
    machine.compiler()
    machine.set_up("3.12", FAIRSEQ="prebuilt")
    assert machine.installed()[1] == WHEEL
    assert machine.set_up("3.12") == "" and not machine.log.exists()
    (machine.project / "constraints.txt").write_text("")  # set up again, without asking for the prebuilt one
    machine.set_up("3.12")
    assert machine.installed() == [f"{REST} ve-fairseq <"]
    machine.set_up("3.12", FAIRSEQ="compiled")
    assert machine.installed() == [GONE, f"--no-build-isolation {BUILD} fairseq-fixed <", f"{REST} fairseq-fixed <"]


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.13"])
def test_no_compiler_where_nothing_is_prebuilt(version, machine):
    assert machine.refusal(version) == (
        "fairseq needs a C++ compiler and there is no 'cc': install one (Debian, Ubuntu: apt install g++); "
        f"a prebuilt one is only there for Python 3.11 and 3.12, and this is {version}"
    )
    machine.compiler()
    assert machine.refusal(version, CXX="clang++ -O2") == (
        "fairseq needs a C++ compiler and there is no 'clang++ -O2': install one (Debian, Ubuntu: apt install g++); "
        f"a prebuilt one is only there for Python 3.11 and 3.12, and this is {version}"
    )
    assert machine.refusal(version, headers=False).startswith(
        f"fairseq needs Python's headers: install them (Debian, Ubuntu: apt install python{version}-dev); a prebuilt"
    )


def test_no_compiler_on_another_system(machine):
    machine.system("Darwin arm64")
    assert machine.refusal("3.12").endswith("is only there for Linux on x86_64, and this is Darwin arm64")
    assert machine.refusal("3.12", FAIRSEQ="prebuilt") == (
        "FAIRSEQ=prebuilt is only there for Linux on x86_64, and this is Darwin arm64: leave it out, or name another "
        "Python with PYTHON=..."
    )


def test_what_is_asked_for_and_cannot_be_had_is_named(machine):
    assert machine.refusal("3.12", FAIRSEQ="compiled") == (
        "fairseq needs a C++ compiler and there is no 'cc': install one (Debian, Ubuntu: apt install g++), or take a "
        "prebuilt one with FAIRSEQ=prebuilt"
    )
    machine.compiler()
    assert machine.refusal("3.12", FAIRSEQ="wheel") == (
        "FAIRSEQ=wheel: it is compiled or prebuilt; without it fairseq is compiled where there is a compiler"
    )
    for version in ("3.9", "3.10", "3.13"):
        assert machine.refusal(version, FAIRSEQ="prebuilt") == (
            f"FAIRSEQ=prebuilt is only there for Python 3.11 and 3.12, and this is {version}: leave it out, or name "
            "another Python with PYTHON=..."
        )


def test_a_prebuilt_fairseq_of_another_sha256_is_refused(machine):
    """By the real pip, which finds a wheel of that name and version."""
    wheels = machine.folder / "wheels"
    wheels.mkdir()
    wheel = wheels / "ve_fairseq-0.12.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fairseq/__init__.py", "")
        information = "ve_fairseq-0.12.3.dist-info"
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: ve-fairseq\nVersion: 0.12.3\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    pip = {"FAIRSEQ": "prebuilt", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(wheels)}

    said = machine.set_up("3.12", 1, **pip)
    assert said.splitlines()[-1] == (
        "setup.sh: the prebuilt fairseq is another file than the one in scripts/prebuilt.txt (its sha256 differs): not "
        "installed"
    )
    site = machine.folder / "pip.log.site"
    assert not site.exists() and not (machine.project / ".venv" / ".nar-fairseq").exists()

    printed = subprocess.run([sys.executable, "-m", "pip", "hash", wheel], check=True, text=True, capture_output=True)
    pinned = f"ve-fairseq==0.12.3 {printed.stdout.split()[-1]}\n"
    (machine.project / "scripts" / "prebuilt.txt").write_text(pinned)
    machine.set_up("3.12", **pip)
    assert (site / "fairseq").is_dir()

    wheel.unlink()
    (machine.project / "scripts" / "prebuilt.txt").write_text(f"{pinned}# changed\n")
    said = machine.set_up("3.12", 1, **pip).splitlines()
    assert said[-1].startswith("setup.sh: the prebuilt fairseq could not be installed (pip's message is above): check")


def test_each_named_python_gets_a_line_of_result(machine):
    """Set up and tested; set up with tests that fail; not set up."""
    machine.compiler()
    for version, status, result in (
        ("3.13", 0, " s | 3.13 passed | "),
        ("3.12", 1, " s | 3.12 passed | "),
        ("3.8", 1, "3.8-compiled | set-up failed: setup.sh: Python 3.9 or later is needed and "),
    ):
        (line,) = machine.bash("pythons.sh", version, "python", expect=status, TESTS="tests/a -x").splitlines()
        assert result in line
        log = Path(line.rpartition(" | ")[2])
        assert log == machine.project / "work" / "pythons" / f"{version}-compiled.log"
        assert version == "3.8" or "asked for -q tests/a -x" in log.read_text()
    machine.bash("pythons.sh", "3.12", "python=prebuilt", expect=1)
    assert machine.installed()[1] == WHEEL


def test_what_pythons_sh_cannot_do_is_said_in_one_line(machine):
    machine.program("shim", "#!/bin/sh\necho pyenv: shim: command not found >&2\nexit 127\n")
    for arguments, said in (
        ((), "name one Python or more, such as python3.9 or python3.12=prebuilt"),
        (("python=wheel",), "python=wheel: =compiled or =prebuilt"),
        (("python", "python3.99"), "there is no 'python3.99'"),
        (("python", "shim"), "'shim' does not run: name another Python"),
    ):
        assert machine.bash("pythons.sh", "3.12", *arguments, expect=2) == f"pythons.sh: {said}\n"
        assert not (machine.project / "work").exists()


def test_the_stand_in_for_pytorch_leaves_its_extensions_out(tmp_path):
    code = """
from setuptools import Distribution, Extension
from torch.utils import cpp_extension
extensions = [Extension("plain", ["plain.c"]), cpp_extension.CppExtension("of_torch", ["of_torch.cpp"])]
command = cpp_extension.BuildExtension(Distribution({"name": "two", "ext_modules": extensions}))
command.ensure_finalized()
print([extension.name for extension in command.extensions])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts" / "without_torch")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, text=True, capture_output=True
    )
    assert done.stdout == "['plain']\n"
