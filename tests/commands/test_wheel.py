"""A built wheel, installed elsewhere or by pip beside a fairseq that is there, and found by
``--user-dir "$(nar-user-dir)"``.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fairseq
import pytest
from conftest import ROOT, hypotheses, preprocess, random_sentences, write_pairs

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a wheel is made of, without what an earlier build left."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "nar_plugins", source / "nar_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, source):
    """A wheel of this checkout."""
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run([*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    (made,) = wheels.glob("nar_plugins-*.whl")
    return made


def test_a_wheel_installed_elsewhere_works(tmp_path, wheel):
    site = tmp_path / "site"
    subprocess.run([*PIP, "install", "-q", "--no-deps", "--target", site, wheel], check=True)

    environment = {**os.environ, "PYTHONPATH": str(site)}  # before the editable installation
    printed = subprocess.run(
        [site / "bin" / "nar-user-dir"], env=environment, cwd=tmp_path, text=True, capture_output=True
    )
    folder = printed.stdout.strip()
    assert Path(folder) == site / "nar_plugins"
    pages = [
        {path.name for path in (root / "demo" / "page").iterdir()} for root in (ROOT / "nar_plugins", Path(folder))
    ]
    assert pages[0] == pages[1] and "index.html" in pages[1]
    command = [
        Path(sys.executable).parent / "fairseq-train",
        "--user-dir",
        folder,
        "--task",
        "nar_translation",
        "--arch",
        "cmlm_tiny",
        "--criterion",
        "nar_loss",
        "--optimizer",
        "adam",
        "--cpu",
        "--max-tokens",
        "9",
        "nowhere",
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: no data folder 'nowhere'")  # our task's own words
    assert str(site / "nar_plugins") in done.stderr


def test_the_wheel_says_what_it_is_and_asks_for_no_fairseq(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(archive.read(name))
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload(decode=True).decode("utf-8").strip() == (ROOT / "README.md").read_text("utf-8").strip()
    asked = [line.replace("'", '"') for line in told.get_all("Requires-Dist")]
    assert [line for line in asked if line.startswith("torch")]
    of_fairseq = [line for line in asked if "fairseq" in line.partition(";")[0]]
    assert len(of_fairseq) == 2 and all('extra == "fairseq"' in line for line in of_fairseq)


def test_wheel_and_source_archive_name_the_pythons_of_the_installation_page(tmp_path, source, wheel):
    page = (ROOT / "docs" / "install.md").read_text("utf-8").split("## Which fairseq")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (3\.[0-9., ]+) \|", page, re.M)
    pythons = [version for row in rows for version in row.split(", ")]
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=source, check=True)
    (made,) = tmp_path.glob("nar_plugins-*.tar.gz")
    with tarfile.open(made) as archive, zipfile.ZipFile(wheel) as built:
        names = {name.partition("/")[2]: name for name in archive.getnames()}
        missing = {name for name in built.namelist() if name.startswith("nar_plugins/")} - set(names)
        assert not missing and "LICENSE" in names
        (metadata,) = [name for name in built.namelist() if name.endswith(".dist-info/METADATA")]
        for text in (built.read(metadata), archive.extractfile(names["PKG-INFO"]).read()):
            told = email.message_from_bytes(text)
            named = [line.rpartition(" :: ")[2] for line in told.get_all("Classifier") if ":: Python :: 3." in line]
            assert named == pythons and told["Requires-Python"] == f">={pythons[0]}"


def test_pip_installs_the_wheel_beside_an_existing_fairseq(tmp_path, wheel):
    """Without an index: whatever pip wanted to add besides the wheel could not be had."""
    venv, existing = tmp_path / "venv", tmp_path / "existing"
    existing.mkdir()
    installed = Path(fairseq.__file__).parent.parent
    for path in installed.iterdir():  # all packages that are there, but for this one
        if "nar_plugins" not in path.name and path.suffix != ".pth":
            (existing / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = (venv / "lib").glob("python*/site-packages")
    (site / "existing.pth").write_text(f"{existing}\n")
    python = venv / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "-q", "--no-index", wheel], check=True)
    added = {path.name.partition("-")[0] for path in site.iterdir()}
    assert added - {"existing.pth", "__pycache__"} == {"nar_plugins"}

    def run(*command) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    folder = run(venv / "bin" / "nar-user-dir").strip()
    assert Path(folder) == site / "nar_plugins"
    sentences = random_sentences(20, 1)
    for split in ("train", "valid", "test"):
        write_pairs(tmp_path / "text", [(sentence, sentence) for sentence in sentences], split)
    data = preprocess(tmp_path / "text", tmp_path / "bin")
    task = ("--user-dir", folder, "--task", "nar_translation", "--cpu", "--num-workers", 0)
    model = ("--arch", "cmlm_tiny", "--criterion", "nar_loss", "--share-all-embeddings")
    updates = ("--optimizer", "adam", "--lr", "1e-3", "--max-tokens", 300, "--max-update", 2, "--save-dir", "saved")
    run(python, "-m", "fairseq_cli.train", data, *task, *model, *updates)
    output = run(python, "-m", "fairseq_cli.generate", data, *task, "--path", "saved/checkpoint_last.pt")
    assert len(hypotheses(output)) == 20


def test_without_fairseq_the_package_says_what_it_needs():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import nar_plugins"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], text=True, capture_output=True)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: nar_plugins needs fairseq, and none is installed: pip install 'nar-plugins[fairseq]', or "
        "use a checkout's scripts/setup.sh"
    )
