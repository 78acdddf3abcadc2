"""A built wheel, installed elsewhere, is found by ``--user-dir "$(nar-user-dir)"``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_a_wheel_installed_elsewhere_works(tmp_path):
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    source.mkdir()
    shutil.copytree(ROOT / "nar_plugins", source / "nar_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("nar_plugins-*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", site, wheel], check=True)

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
