"""docs/add_a_method.md: its code in a folder of a user's own, its commands as they are written."""

import os
import re
import subprocess
from pathlib import Path

import forked
import pytest
from conftest import ROOT, hypotheses, preprocess, random_sentences, write_pairs

PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
FILE, CODE = re.search(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S).groups()
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.S).group(1).replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's code and a toy corpus in data-bin."""
    folder = tmp_path_factory.mktemp("method")
    (folder / FILE).parent.mkdir()
    (folder / FILE).write_text(CODE, encoding="utf-8")
    for split, count, seed in (("train", 200, 1), ("valid", 20, 2), ("test", 20, 3)):
        write_pairs(folder / "text", [(s, s) for s in random_sentences(count, seed)], split)
    preprocess(folder / "text", folder / "data-bin")
    return folder


def shell(folder: Path, command: str, fine: bool = True) -> str:
    """The output of a command line, in the folder."""
    path = f"{forked.commands()}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, text=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) is fine, f"{command}\n{output[-4000:]}"
    return output


def test_the_page_trains_validates_and_generates_as_it_is_written(folder):
    names = [command.split()[0] for command in COMMANDS]
    assert names == ["fairseq-train", "fairseq-validate", "fairseq-generate"]
    trained, validated, generated = (shell(folder, command) for command in COMMANDS)
    assert "'observed_loss_factor': 0.2" in trained and "target_noise='span'" in trained
    assert re.search(r"train .*observed [\d.]+", trained) and re.search(r"valid .*observed [\d.]+", validated)
    assert len(hypotheses(generated)) == 20
    assert "'generator': 'easy_first'" in generated and "'fixed_per_pass': 3" in generated


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("fixed_per_pass:", "iterations:"),
            "generator easy_first: --iterations is an option of generator mask_predict with another meaning: rename it",
        ),
        (
            (
                "class EasyFirstModel(CmlmModel):",
                "from nar_plugins.models.base import NarModel\n\n\nclass EasyFirstModel(NarModel):",
            ),
            "EasyFirstModel names the generator 'easy_first' and has no method 'canvas': define it as "
            "nar_plugins/models/contract.py says",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_the_folder_is_imported(folder, change, message):
    code = CODE.replace('@register_model("easy_first")\n', "") if "canvas" in message else CODE
    assert change[0] in code
    (folder / "wrong.py").write_text(code.replace(*change), encoding="utf-8")
    output = shell(folder, "python wrong.py", fine=False)
    assert output.strip().splitlines()[-1] == f"ValueError: {message}"
