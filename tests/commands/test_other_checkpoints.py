"""Other people's checkpoints at every door: of fairseq's own recipe for translation, and of its oldest versions."""

import logging
import re
import shutil
import sys
import tempfile
import types
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import hypotheses
from in_process import refusal
from test_bad_input import AR, CMLM, TASK, TRAIN, binarise, here, pairs

from nar_plugins.cli import average, bench, convert, distill, pack
from nar_plugins.hub import from_pretrained

LAST = "checkpoint_last.pt"
SIZES = (
    *AR,
    "--encoder-ffn-embed-dim",
    "128",
    "--decoder-ffn-embed-dim",
    "128",
    "--encoder-attention-heads",
    "4",
    "--decoder-attention-heads",
    "4",
)
STOCK = tuple("translation" if flag == "nar_translation" else flag for flag in TRAIN)
BLEU = (
    "--eval-bleu",
    "--eval-bleu-args",
    '{"beam": 1, "max_len_b": 5}',
    "--best-checkpoint-metric",
    "bleu",
    "--maximize-best-checkpoint-metric",
    "--save-interval-updates",
    "3",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    """A corpus; a stock teacher whose metrics hold arrays (``recipe``), the same without metrics (``plain``) and in the
    form of fairseq 0.6 to 0.8 (``old``); a cmlm and a blockwise."""
    root = tmp_path_factory.mktemp("others")
    data = binarise(root / "text", {"train": pairs(60, 1), "valid": pairs(9, 2), "test": pairs(11, 3)})
    here("fairseq-train", data, *STOCK, *SIZES, *BLEU, "--max-update", "4", "--save-dir", root / "ar")
    here("fairseq-train", data, *TRAIN, *CMLM, "--save-dir", root / "cmlm")
    recipe = root / "ar" / LAST
    state = torch.load(recipe, weights_only=False)
    assert any(isinstance(meter[3]["sum"], np.ndarray) for meter in state["extra_state"]["metrics"]["valid"])
    torch.manual_seed(1)
    for name, weight in state["model"].items():  # so that it says many things
        if weight.dim() == 2 and name.endswith(".weight"):  # fairseq 0.12.2's encoder has copies by other names
            weight.normal_(std=2 * weight.size(1) ** -0.5)
    torch.save(state, recipe)
    (root / "text.src").write_text("w1 w2 w3\nw4 w5\n", encoding="utf-8")
    return Namespace(
        root=root,
        data=data,
        recipe=recipe,
        plain=plain(state, root / "plain.pt"),
        old=old(state, root / "old.pt"),
        cmlm=root / "cmlm" / LAST,
    )


def plain(state, path: Path) -> Path:
    extra = {name: value for name, value in state["extra_state"].items() if name != "metrics"}
    torch.save({**state, "extra_state": extra}, path)
    torch.load(path, weights_only=True)
    return path


class Calls:
    """Pickled, it is a call of a function of fairseq's, which imports a folder of the user's."""

    def __init__(self, function, plugin: Path):
        self.call = function, (Namespace(user_dir=str(plugin)),)

    def __reduce__(self):
        return self.call


def old(state, path: Path) -> Path:
    """The checkpoint as fairseq 0.6 to 0.8 would have written it: meters of that time, and PyTorch's first format.

    It would also import a plug-in that leaves a mark, in a reader that runs what it reads.
    """
    from fairseq.utils import import_user_module

    plugin = path.parent / "plugin_of_old"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(f"import os; os.mkdir({str(path.parent / 'mark')!r})\n")
    module = types.ModuleType("fairseq.meters")
    module.AverageMeter = type("AverageMeter", (), {"__module__": "fairseq.meters"})
    meter = module.AverageMeter()
    meter.sum, meter.count = 1.5, 3
    history = [
        {
            "criterion_name": "CrossEntropyCriterion",
            "optimizer_name": "FairseqAdam",
            "lr_scheduler_state": {"best": 1.0},
            "num_updates": 4,
        }
    ]
    args = Namespace(**vars(state["cfg"]["model"]))
    extra = {
        "train_iterator": {"epoch": 3, "iterations_in_epoch": 0},
        "val_loss": 1.0,
        "train_meters": OrderedDict(train_loss=meter),
        "call": Calls(import_user_module, plugin),
    }
    before = sys.modules.get("fairseq.meters")
    sys.modules["fairseq.meters"] = module
    try:
        torch.save(
            {
                "args": args,
                "model": state["model"],
                "optimizer_history": history,
                "extra_state": extra,
                "last_optimizer_state": state["last_optimizer_state"],
            },
            path,
            _use_new_zipfile_serialization=False,
        )
    finally:
        sys.modules.pop("fairseq.meters") if before is None else sys.modules.update({"fairseq.meters": before})
    return path


def texts(output: str) -> dict:
    return {
        number: [(text, round(float(score), 2)) for score, text in lines]
        for number, lines in hypotheses(output).items()
    }


def trained(made, folder: Path, *flags) -> dict:
    """The parameters after one update with a learning rate of almost nothing."""
    here(
        "fairseq-train",
        made.data,
        *TRAIN,
        "--max-update",
        "1",
        "--lr",
        "1e-12",
        "--disable-validation",
        *flags,
        "--save-dir",
        folder,
    )
    model = torch.load(folder / LAST, weights_only=False)["model"]  # restored metrics are saved again, arrays and all
    # fairseq 0.12.2's positions have a buffer that is never written, uninitialised memory
    return {name: v.double().sum().item() for name, v in model.items() if not name.endswith("._float_tensor")}


def validated(made, path) -> list:
    """The losses that fairseq-validate logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    progress = logging.getLogger("fairseq.logging.progress_bar")
    progress.addHandler(handler)
    progress.setLevel(logging.INFO)
    try:
        here("fairseq-validate", made.data, *TASK, "--path", path, "--max-tokens", "99")
    finally:
        progress.removeHandler(handler)
        progress.setLevel(logging.NOTSET)
    return re.findall(r"loss (\S+)", "\n".join(lines))


def distilled(made, path, folder: Path) -> bytes:
    distill.main(
        [
            str(a)
            for a in (
                made.data,
                "--teacher",
                path,
                "--out",
                folder,
                "--cpu",
                "--beam",
                2,
                "--max-len-b",
                9,
                "--no-progress-bar",
            )
        ]
    )
    return (folder / "train.src-tgt.tgt.bin").read_bytes()


def ours(main, *arguments) -> None:
    """Run a command of this package's, which silences the log of its process."""
    try:
        main([*map(str, arguments)])
    finally:
        logging.disable(logging.NOTSET)


def translated(*where) -> list:
    translator = from_pretrained(*where, cpu=True, beam=2, max_len_b=9)
    return [(found.text, round(found.score, 2)) for found in translator.translate(["w1 w2 w3", "w4 w5"])]


def packed(made, path, folder: Path) -> Path:
    ours(pack.main, path, "--data", made.data, "--out", folder)
    return folder


def timed(made, path, folder: Path) -> str:
    """What nar-bench decodes."""
    quick = ("--batch-sizes", "9", "--sentences", "2", "--repeats", "1", "--output", folder)
    ours(bench.main, made.data, "--system", "A", path, "--beam 1 --max-len-b 9", "--flags", "--cpu", *quick)
    return (folder / "A.txt").read_text()


def averaged(path, out: Path) -> dict:
    again = shutil.copy(path, out.with_name("again.pt"))
    ours(average.main, again, path, "--out", out)
    model = torch.load(out, weights_only=False)["model"]  # its metrics keep their arrays
    # fairseq 0.12.2's positions have a buffer that is never written, uninitialised memory
    return {name: v.double().sum().item() for name, v in model.items() if not name.endswith("._float_tensor")}


def generate(made, path, *flags) -> tuple:
    return ("fairseq-generate", made.data, *TASK, "--path", path, "--max-len-b", "9", *flags)


DOORS = {
    "generate": lambda made, path, tmp: texts(here(*generate(made, path, "--beam", "2"))),
    "blockwise": lambda made, path, tmp: texts(here(*generate(made, path, "--generator", "blockwise", "--beam", "1"))),
    "interactive": lambda made, path, tmp: texts(
        here(
            "fairseq-interactive",
            made.data,
            *TASK,
            "--path",
            path,
            "-s",
            "src",
            "-t",
            "tgt",
            "--input",
            made.root / "text.src",
        )
    ),
    "validate": lambda made, path, tmp: validated(made, path),
    "--rescorer": lambda made, path, tmp: texts(
        here(*generate(made, made.cmlm, "--iterations", "2", "--rescorer", path))
    ),
    "nar-distill": lambda made, path, tmp: distilled(made, path, tmp / "kd"),
    "--init-encoder-from": lambda made, path, tmp: trained(made, tmp / "s", *CMLM, "--init-encoder-from", path),
    "--finetune-from-model": lambda made, path, tmp: trained(
        made,
        tmp / "s",
        "--arch",
        "blockwise_tiny",
        "--criterion",
        "blockwise_loss",
        "--finetune-from-model",
        path,
        "--freeze-base",
    ),
    "--teacher": lambda made, path, tmp: trained(made, tmp / "s", *CMLM, "--teacher", path),
    "--restore-file": lambda made, path, tmp: trained(
        made, tmp / "s", *SIZES, "--restore-file", path, "--reset-optimizer", "--reset-dataloader"
    ),
    "the hub": lambda made, path, tmp: translated(path, made.data),
    "nar-pack": lambda made, path, tmp: translated(packed(made, path, tmp / "packed")),
    "nar-bench": lambda made, path, tmp: timed(made, path, tmp / "out"),
    "nar-average": lambda made, path, tmp: averaged(path, tmp / "average.pt"),
}


@pytest.mark.parametrize("door", DOORS)
def test_checkpoints_of_stock_trainers_are_what_their_weights_are(made, tmp_path, door):
    said = {}
    kinds = {
        "generate": ("recipe", "old", "plain"),
        "validate": ("recipe", "plain"),
    }  # validate takes cfg's task, not args'
    for kind in kinds.get(door, ("recipe", "old")):
        (tmp_path / kind).mkdir()
        said[kind] = DOORS[door](made, getattr(made, kind), tmp_path / kind)
    assert said["recipe"] and all(one == said["recipe"] for one in said.values()), said
    assert not (made.root / "mark").exists() and "plugin_of_old" not in sys.modules


def test_stock_training_goes_on_from_the_recipes_checkpoint_in_the_middle_of_an_epoch(made, tmp_path):
    """Its metrics, with the arrays, are restored then, and saved again."""
    flags = (*SIZES, *BLEU, "--max-update", "5", "--save-dir", tmp_path)
    here("fairseq-train", made.data, *STOCK, *flags, "--restore-file", made.recipe)
    state = torch.load(tmp_path / LAST, weights_only=False)
    assert [entry["num_updates"] for entry in state["optimizer_history"]][-1] == 5
    kinds = {type(meter[3]["sum"]).__name__ for meter in state["extra_state"]["metrics"]["valid"] if "sum" in meter[3]}
    modules = {
        type(meter[3]["sum"]).__module__ for meter in state["extra_state"]["metrics"]["valid"] if "sum" in meter[3]
    }
    assert "ndarray" in kinds and modules <= {"builtins", "numpy", "torch"}
    here(*generate(made, tmp_path / LAST, "--beam", "1"))


def test_an_optimizers_state_without_mask_is_told_by_the_flag_that_helps(made, tmp_path):
    with pytest.raises(
        ValueError, match=r"optimizer has a state of \(48, 64\) .* is \(49, 64\) here.*: give --reset-optimizer$"
    ):
        trained(made, tmp_path / "s", *SIZES, "--restore-file", made.plain, "--max-update", "5")


class Marks:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return tempfile.mkdtemp, ("", "marker", str(self.folder))


def refused(door: str, made, path, tmp: Path) -> str:
    if door.startswith("nar-"):
        with pytest.raises(SystemExit) as stop:
            DOORS[door](made, path, tmp)
        return stop.value.code
    with pytest.raises(ValueError) as error:
        DOORS[door](made, path, tmp)
    return str(error.value)


@pytest.mark.parametrize("door", [*DOORS, "--drafter-path"])
def test_a_checkpoint_that_would_run_code_is_refused_at_every_door(made, tmp_path, door):
    made_of = made.cmlm if door == "--drafter-path" else made.plain
    state = torch.load(made_of, weights_only=True)
    places = {"extra_state": {**state["extra_state"], "x": Marks(tmp_path)}, "more": Marks(tmp_path)}
    number = [*DOORS, "--drafter-path"].index(door)
    place, form = ("extra_state", "more")[number % 2], number // 2 % 2 == 0
    path = tmp_path / "c.pt"
    torch.save({**state, place: places[place]}, path, _use_new_zipfile_serialization=form)
    if door == "--drafter-path":
        with pytest.raises(ValueError) as error:
            here(
                *generate(
                    made,
                    made.plain,
                    "--generator",
                    "blockwise",
                    "--beam",
                    "1",
                    "--drafter",
                    "model",
                    "--drafter-path",
                    path,
                )
            )
        said = str(error.value)
    else:
        said = refused(door, made, path, tmp_path)
    assert f"{path} holds objects that could run code when loaded" in said and "\n" not in said
    assert f"nar-convert fairseq {path} --out FILE" in said
    assert not list(tmp_path.glob("marker*"))


def test_a_drafter_with_arrays_in_its_metrics_is_loaded(made, tmp_path):
    state = torch.load(made.cmlm, weights_only=True)
    state["extra_state"]["metrics"]["valid"] = [(1, "x", "AverageMeter", {"val": 0, "sum": np.ones(2), "count": 1})]
    torch.save(state, tmp_path / "c.pt")
    flags = ("--generator", "blockwise", "--beam", "1")
    drafted = here(*generate(made, made.plain, *flags, "--drafter", "model", "--drafter-path", tmp_path / "c.pt"))
    assert texts(drafted) == texts(here(*generate(made, made.plain, *flags)))


@pytest.mark.parametrize(
    "lacks", [("optimizer_history",), ("extra_state",), ("optimizer_history", "extra_state", "last_optimizer_state")]
)
def test_a_checkpoint_without_a_history_decodes_and_starts_others(made, tmp_path, lacks):
    """As people publish them: a model and its arguments."""
    state = torch.load(made.plain, weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in lacks}, tmp_path / "published.pt")
    right = texts(here(*generate(made, made.plain, "--beam", "2")))
    assert texts(here(*generate(made, tmp_path / "published.pt", "--beam", "2"))) == right
    convert.main(["fairseq", str(tmp_path / "published.pt"), "--out", str(tmp_path / "copy.pt")])
    assert texts(here(*generate(made, tmp_path / "copy.pt", "--beam", "2"))) == right
    here(*generate(made, made.cmlm, "--iterations", "2", "--rescorer", tmp_path / "published.pt"))
    trained(made, tmp_path / "s", *CMLM, "--init-encoder-from", tmp_path / "published.pt")


@pytest.mark.parametrize("change", [{"model": [1]}, {"args": "x", "cfg": None}, {"args": None, "cfg": None}])
def test_a_checkpoint_whose_parts_are_of_other_kinds_is_none(made, tmp_path, change):
    torch.save({**torch.load(made.plain, weights_only=True), **change}, tmp_path / "odd.pt")
    assert "is no fairseq checkpoint" in refusal(*generate(made, tmp_path / "odd.pt"))
