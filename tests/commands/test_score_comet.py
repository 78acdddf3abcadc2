"""scripts/score_comet.sh up to COMET itself, which a stub replaces: its model is a download of 2 GB."""

import os
import subprocess

import forked
import pytest
from conftest import ROOT

STUB = '#!/bin/sh\necho "$@" > "$STUB/arguments"\ncp "$2" "$4" "$6" "$STUB"\nprintf "$4\\tscore: 0.8123\\n"\n'


@pytest.fixture
def score(tmp_path):
    """A function: file names and variables -> status, output and messages of the script; paths are cut to names."""
    (tmp_path / "src").write_text("eins\nzwei\n", encoding="utf-8")
    (tmp_path / "ref").write_text("one\ntwo\u2028x\n", encoding="utf-8")
    (tmp_path / "short").write_text("one\n", encoding="utf-8")
    (tmp_path / "out").write_bytes("D-1\t-1\ttwo\rx\nlog\nD-0\t-1\tone\n".encode())
    (tmp_path / "half").write_text("D-1\t-1\ttwo\nD-0\t-1", encoding="utf-8")
    (tmp_path / "comet" / "bin").mkdir(parents=True)
    (tmp_path / "comet" / "bin" / "comet-score").write_text(STUB, encoding="utf-8")
    (tmp_path / "comet" / "bin" / "comet-score").chmod(0o755)

    def run(*names, **variables):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VENV": str(forked.commands().parent)}
        environment |= {"COMET_VENV": str(tmp_path / "comet"), "STUB": str(tmp_path / "seen"), **variables}
        (tmp_path / "seen").mkdir(exist_ok=True)
        command = ["bash", str(ROOT / "scripts" / "score_comet.sh"), *(str(tmp_path / name) for name in names)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr.replace(f"{tmp_path}/", "")

    return run


@pytest.mark.parametrize(
    "names, said",
    [
        (("src", "out"), "SOURCE HYPOTHESES REFERENCE: three files, not 2"),
        (("src", "none", "ref"), "no file none"),
        (
            ("src", "half", "ref"),
            "half, line 2: 'D-0\t-1' is cut off, as a run that is stopped leaves its last line: decode these sentences "
            "again",
        ),
        (("src", "out", "short"), "src has 2 sentences, out has 2 sentences, short has 1 sentences"),
    ],
)
def test_what_cannot_be_scored_is_one_line(score, names, said):
    assert score(*names) == (2, "", f"score_comet.sh: {said}\n")


def test_an_environment_that_cannot_be_made_is_one_line(score, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho no network at all >&2\nexit 1\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    said = score("src", "out", "ref", COMET_VENV=str(tmp_path / "new"), PYTHON=str(tmp_path / "python"))
    assert said == (2, "", "score_comet.sh: unbabel-comet 2.2.7 cannot be installed: no network at all\n")


def test_comet_gets_the_best_hypotheses_in_order(score, tmp_path):
    status, output, said = score("src", "out", "ref")
    assert (status, said) == (0, "")
    assert output == f"{tmp_path / 'out'}\tscore: 0.8123  comet 2.2.7, Unbabel/wmt22-comet-da\n"
    assert (tmp_path / "seen" / "hypotheses").read_bytes() == b"one\ntwo x\n"
    assert (tmp_path / "seen" / "reference").read_text(encoding="utf-8") == "one\ntwo\u2028x\n"
    assert "--model Unbabel/wmt22-comet-da --gpus 0 --only_system" in (tmp_path / "seen" / "arguments").read_text()
