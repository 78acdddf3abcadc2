"""Checkpoints load without running code from them, and a bad one is told from a good one in one line."""

import errno
import os
import re
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

import nar_plugins  # noqa: F401
from nar_plugins import compat

ZIP, LEGACY = True, False  # the two formats of torch.save, PyTorch 1.6 and later, and before
IN_CHECKPOINTS = (
    "collections.OrderedDict",
    "argparse.Namespace",
    "torch._utils._rebuild_tensor_v2",
    "torch.FloatStorage",
)


class WritesMarker:
    """Unpickled by an unsafe reader, it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def content(**extra) -> dict:
    """What every fairseq checkpoint has."""
    history = [{"criterion_name": "CrossEntropyCriterion", "num_updates": 1, "optimizer_name": "FairseqAdam"}]
    history[0]["lr_scheduler_state"] = {}
    args = Namespace(arch="transformer", task="translation")
    return {
        "args": args,
        "cfg": None,
        "model": {"w": torch.arange(3.0)},
        "optimizer_history": history,
        "extra_state": {"train_iterator": {"epoch": 1}},
        **extra,
    }


def save(path: Path, state, form=ZIP) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=form)
    return path


def refusal(path) -> str:
    """The message with which fairseq's own loader, as this package wraps it, refuses a file."""
    with pytest.raises(compat.CheckpointError) as error:
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", [ZIP, LEGACY])
@pytest.mark.parametrize("place", ["model", "args", "extra_state"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, form, place):
    marker = tmp_path / "marker"
    path = save(tmp_path / "evil.pt", content(**{place: {"x": WritesMarker(marker)}}), form)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the trap works
    marker.unlink()
    assert "could run code" in refusal(path)
    with pytest.raises(compat.CheckpointError):
        compat.checked(path)
    assert not marker.exists()


def test_the_refused_object_is_named(tmp_path):
    path = save(tmp_path / "evil.pt", content(extra_state=WritesMarker(tmp_path / "marker")))
    assert "system" in refusal(path)  # posix.system


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_a_plain_fairseq_checkpoint_loads(tmp_path, form):
    path = save(tmp_path / "checkpoint.pt", content(), form)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert state["model"]["w"].tolist() == [0, 1, 2]
    assert state["args"].arch == "transformer"


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_a_checkpoint_cut_anywhere_is_called_truncated(tmp_path, form):
    model = {f"layer{i}.weight": torch.randn(20, 10) for i in range(4)}
    whole = save(tmp_path / "whole.pt", content(model=model), form).read_bytes()
    path = tmp_path / "sub" / "cut.pt"
    path.parent.mkdir()
    for length in sorted({0, 1, 2, 3, 4, 100, *range(7, len(whole) - 1, len(whole) // 40), len(whole) - 1}):
        path.write_bytes(whole[:length])
        said = refusal(path)
        # the one other way: cut in the middle of a class's name, "collection" for "collections.OrderedDict"
        cut = re.search(r"GLOBAL (\S*?)[ )]", said)
        assert "truncated" in said or form == LEGACY and any(name.startswith(cut[1]) for name in IN_CHECKPOINTS), (
            length,
            said,
        )


def test_the_message_names_the_newest_whole_checkpoint_beside(tmp_path):
    for age, name in ((30, "checkpoint1.pt"), (20, "checkpoint_best.pt"), (40, "checkpoint0.pt")):
        save(tmp_path / name, content())
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    whole = (tmp_path / "checkpoint1.pt").read_bytes()
    (tmp_path / "checkpoint_newer_but_cut.pt").write_bytes(whole[:-100])
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(whole[: len(whole) // 2])
    said = refusal(last)
    assert str(tmp_path / "checkpoint_best.pt") in said and "newest whole" in said
    assert last.read_bytes() == whole[: len(whole) // 2]  # nothing is repaired behind the user's back


def test_the_message_says_when_there_is_no_whole_checkpoint(tmp_path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"")
    assert "no whole checkpoint stands beside it" in refusal(tmp_path / "checkpoint_last.pt")


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    text = b"hello, this is no checkpoint\n"
    files = {"text.pt": text, "noise.pt": bytes(range(256)) * 8, "dict.pt": b"the 12\nof 7\n"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert "not a PyTorch checkpoint" in refusal(tmp_path / name), name
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("page.txt", "hello")
    assert "not a PyTorch checkpoint" in refusal(tmp_path / "archive.pt")


@pytest.mark.parametrize("state", [{"weight": torch.ones(2)}, {"model": {}}, {"args": Namespace()}, torch.ones(2), [1]])
def test_a_pytorch_file_without_fairseqs_parts_is_refused(tmp_path, state):
    assert "no fairseq checkpoint" in refusal(save(tmp_path / "other.pt", state))


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    assert "no checkpoint at" in refusal(tmp_path / "checkpoint_best.pt")


@pytest.mark.parametrize("wrapped", [False, True])  # PyTorch raises its own error after the system's
def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_no_part(tmp_path, monkeypatch, wrapped):
    def full(obj, file):
        file.write(b"part")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if not wrapped:
                raise
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")  # noqa: B904

    path = save(tmp_path / "checkpoint_last.pt", content())
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError) as error:
        checkpoint_utils.torch_persistent_save(content(), str(path))
    assert str(error.value) == f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: '{path}'"
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before
    monkeypatch.setattr(torch, "save", lambda obj, file: (_ for _ in ()).throw(RuntimeError("another reason")))
    with pytest.raises(RuntimeError, match="^another reason$"):
        checkpoint_utils.torch_persistent_save(content(), str(path))


def test_applying_the_workarounds_again_changes_nothing():
    before = checkpoint_utils.load_checkpoint_to_cpu
    compat.apply()
    assert checkpoint_utils.load_checkpoint_to_cpu is before


def test_of_the_classes_that_could_be_loaded_only_the_namespace_was_added():
    named = {f"{c.__module__}.{c.__qualname__}" for c in torch.serialization.get_safe_globals()}
    assert {name for name in named if not name.startswith("torch.")} == {"argparse.Namespace"}
