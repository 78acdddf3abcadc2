"""What the tests share: toy corpora, fairseq's commands as a user types them, and real text where it is."""

import gc
import importlib.util
import os
import random
import subprocess
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from in_process import here

from nar_plugins.data.dictionary import add_mask
from nar_plugins.generators.canvas.mask_predict import MaskPredictConfig, MaskPredictGenerator
from nar_plugins.generators.options import generation_options

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"  # computed by the official releases
SHARED = ROOT.parent / "shared" / "data"  # a folder of real text beside the checkout, where there is one
ALPHABET = [f"w{i}" for i in range(40)]


def script(path: str):
    """The module of a script that is in no package: ``benchmarks/bench_int8.py``, for example."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu or cuda: where the models of the unit and parity tests live")


def pytest_collection_finish():
    """PyTorch's and fairseq's million objects stay: without them a full garbage collection takes 0.2 s less."""
    gc.freeze()


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def shared_data():
    """A function name -> path below the shared real text; skips the test where it is not."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"no {name} beside the project")
        return SHARED / name

    return find


def run(command: str, *arguments, expect: int = 0, **kwargs) -> str:
    """Run one of fairseq's or this package's commands of the running Python; its output, both streams.

    Args:
        expect: the exit status; None for any but 0.
    """
    done = subprocess.run(
        [str(forked.program(command)), *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )
    fine = done.returncode != 0 if expect is None else done.returncode == expect
    assert fine, f"{command} {' '.join(map(str, arguments))}\nexit {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def hypotheses(output: str, kind: str = "H") -> dict:
    """The lines of one kind of fairseq-generate's output: number of the sentence -> list of their fields."""
    lines = {}
    for line in output.splitlines():
        if line.startswith(f"{kind}-"):
            name, *fields = line.split("\t")
            lines.setdefault(int(name[2:]), []).append(fields)
    return lines


def write_pairs(folder: Path, pairs, prefix: str) -> None:
    """Source and target sentences, one a line, into PREFIX.src and PREFIX.tgt."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, column in (("src", 0), ("tgt", 1)):
        (folder / f"{prefix}.{side}").write_text("".join(f"{pair[column]}\n" for pair in pairs), encoding="utf-8")


def random_sentences(count: int, seed: int, shortest: int = 3, longest: int = 12):
    """Random strings of symbols of the 40-symbol alphabet."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(ALPHABET, k=rng.randint(shortest, longest))) for _ in range(count)]


def repetitions(symbol: str) -> int:
    """How often "repeat" says a symbol: 0 to 3 times, by its number."""
    return int(symbol[1:]) % 4


def repeated(sentence: str) -> str:
    """The target of "repeat"."""
    return " ".join(symbol for symbol in sentence.split() for _ in range(repetitions(symbol)))


def preprocess(folder: Path, destination: Path, **options) -> Path:
    """Binarise train, valid and test .src/.tgt with a joined dictionary."""
    splits = [
        f"--{split}pref={folder / split}" for split in ("train", "valid", "test") if (folder / f"{split}.src").exists()
    ]
    extra = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    here(
        "fairseq-preprocess", "-s", "src", "-t", "tgt", "--joined-dictionary", *splits, "--destdir", destination, *extra
    )
    return destination


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """A function task -> binarised toy corpus; the task is "copy", "reverse" or "repeat" (w0 never, w1 once ... w4
    never).
    """
    made = {}

    def make(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            change = {"copy": lambda s: s, "reverse": lambda s: " ".join(reversed(s.split())), "repeat": repeated}[task]
            for split, count, seed in (("train", 20000, 1), ("valid", 200, 2), ("test", 200, 3)):
                write_pairs(folder, [(s, change(s)) for s in random_sentences(count, seed)], split)
            made[task] = preprocess(folder, folder / "bin")
        return made[task]

    return make


def random_model(arch: str = "cmlm_tiny", words: int = 60, seed: int = 1, scale: float = 30.0, flags=()):
    """A model with random weights and its task's stand-in, without any file.

    Args:
        scale: the vocabulary table is multiplied by it, so that the model is sure of what it says and no two words tie.
        flags: further training flags.

    Returns:
        the model in evaluation mode, and a namespace with the dictionaries and ``mask_index``.
    """
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol(f"w{i}")
    mask = add_mask(dictionary)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, mask_index=mask)
    parser = options.get_training_parser("nar_translation")
    given = [
        "data",
        "--task",
        "nar_translation",
        "--arch",
        arch,
        "--criterion",
        "nar_loss",
        "--share-all-embeddings",
        *flags,
    ]
    args = options.parse_args_and_arch(parser, input_args=given)
    torch.manual_seed(seed)
    model = ARCH_MODEL_REGISTRY[arch].build_model(args, task).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                weight.mul_(scale)
    return model, task


def mask_predict(models, dictionary, mask: int, **settings):
    """A Mask-Predict generator with the flags' defaults, overridden by ``settings`` (fairseq's options too)."""
    config = {f.name: f.default for f in fields(MaskPredictConfig) if not f.name.startswith("_")}
    ours = {name: settings.pop(name) for name in list(settings) if name in config}
    return MaskPredictGenerator(
        models, dictionary, SimpleNamespace(**{**config, **ours}), generation_options(SimpleNamespace(**settings)), mask
    )


def source_batch(lengths, words: int, pad: int = 1, eos: int = 2, seed: int = 7, device="cpu") -> torch.Tensor:
    """Random sources of these lengths (with </s>), padded on the right: (B, S)."""
    rng = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), pad)
    for row, n in zip(batch, lengths):
        row[: n - 1] = torch.randint(4, 4 + words, (n - 1,), generator=rng)
        row[n - 1] = eos
    return batch.to(device)


os.environ.setdefault("OMP_NUM_THREADS", "2")
