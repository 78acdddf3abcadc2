"""README's "Your own data", run as it is written: the block goes to bash unchanged, on 300 pairs of a toy language.

The commands that it calls are wrappers: they add flags for tiny models and few updates (fairseq takes a flag's last
value) and start the real command.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TINY = "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 32"
SHORTER = {
    "fairseq-train": f"--cpu {TINY} --max-update 4 --max-tokens 800 --num-workers 0 --no-progress-bar",
    "fairseq-generate": "--cpu --max-len-b 20 --num-workers 0",
    "fairseq-interactive": "--cpu",
    "nar-distill": "--cpu --max-len-b 20",
    "fairseq-preprocess": "",
    "nar-score": "",
}


def block() -> str:
    """The first block of bash of the section."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Your own data\n")[1].split("\n## ")[0]
    return re.search(r"^```bash\n(.*?)^```", section, re.M | re.S).group(1)


def write_corpus(folder: Path) -> None:
    """300 training pairs, 20 for validation, 20 for the test, and two new sentences."""
    draw = random.Random(1)
    words = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 6))) for _ in range(60)]
    for split, lines in (("train", 300), ("valid", 20), ("test", 20), ("new", 2)):
        source = [" ".join(draw.choices(words, k=draw.randint(3, 8))) + " ." for _ in range(lines)]
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in source), encoding="utf-8")
        target = (" ".join(reversed(line.split()[:-1])).upper() + " ." for line in source)
        (folder / f"{split}.de").write_text("".join(f"{line}\n" for line in target), encoding="utf-8")


def write_environment(folder: Path) -> None:
    """What ``source .venv/bin/activate`` finds: this Python, and the wrappers."""
    real = Path(sys.executable).parent
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:{real}:$PATH"\n', encoding="utf-8")
    for name, flags in SHORTER.items():
        # the command is written down before it starts, and its end status is its own
        wrapper = f'#!/bin/sh\necho "{name} $*" >> "{folder}/started"\nexec "{real}/{name}" "$@" {flags}\n'
        (programs / name).write_text(wrapper, encoding="utf-8")
        (programs / name).chmod(0o755)
    for name in ("scripts", "nar_plugins"):
        (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which the block was run, with its output in ``log``."""
    folder = tmp_path_factory.mktemp("walk")
    write_corpus(folder)
    write_environment(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block()],
        cwd=folder,
        env=environment,
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    (folder / "log").write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-4000:]
    return folder


def test_every_command_of_the_section_was_started(walked):
    started = [line.split()[0] for line in (walked / "started").read_text(encoding="utf-8").splitlines()]
    written = re.findall(r"^(?:.*\| )?((?:fairseq|nar)-[a-z]+) ", block(), re.M)  # those after a pipe, too
    assert sorted(started) == sorted(written)
    assert {"fairseq-train", "nar-distill", "fairseq-generate", "nar-score", "fairseq-interactive"} <= {*started}


def test_it_ends_with_translations_and_with_bleu_over_words(walked):
    log = (walked / "log").read_text(encoding="utf-8")
    assert len(re.findall(r"^BLEU [\d.]+  nrefs:1\|case:mixed", log, re.M)) == 2
    assert len(re.findall(r"^D-\d+\t", log, re.M)) == 2  # new.en has two lines; those of the test go to nar-score
    assert "\u2581" not in "".join(re.findall(r"^D-.*", log, re.M))  # SentencePiece's mark of a word


def test_the_parallel_model_learnt_the_teacher_s_translations(walked):
    assert (walked / "kd" / "train.en-de.de.idx").exists()
    assert (walked / "cmlm" / "checkpoint_best.pt").exists()
