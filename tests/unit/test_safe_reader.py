"""What stock trainers leave in checkpoints is read, what could run code is not, and nothing that a file names is
imported.
"""

import pickle
import sys
import tempfile
import types
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, metrics
from test_compat import LEGACY, ZIP, content, save

from nar_plugins import compat
from nar_plugins.cli import convert
from nar_plugins.compat import safe_reader
from nar_plugins.compat.safe_reader import CheckpointError, NotLoaded, PlainArray

NUMBERS = [
    np.array([3, 0, 1]),
    np.arange(6.0, dtype="f4").reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(7),
    np.array([1, 2], dtype=">i4"),
    np.array([True, False]),
    np.zeros((0, 3)),
    np.array([1 + 2j]),
    np.ones(2, dtype="f2"),
    np.float64(0.33),
    np.int64(-4),
    np.float32(1.5),
    np.bool_(True),
    np.uint8(200),
]


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def object_of(name: str, monkeypatch, state=None):
    """An object of a class of that full name, which nobody has when it is loaded.

    Args:
        state: its attributes.
    """
    module, _, own = name.rpartition(".")
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    kind = type(own, (), {"__module__": module, "__qualname__": own})
    setattr(sys.modules[module], own, kind)
    made = kind()
    vars(made).update(state or {})
    return made


def load(path) -> dict:
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [ZIP, LEGACY])
@pytest.mark.parametrize("value", NUMBERS, ids=lambda v: f"{v.dtype}{v.shape}")
def test_numbers_of_numpys_are_read_as_they_are(tmp_path, value, form):
    path = save(tmp_path / "c.pt", content(extra_state={"train_iterator": {"epoch": 1}, "x": value}), form)
    read = load(path)["extra_state"]["x"]
    assert read.dtype == value.dtype.newbyteorder("=") and read.shape == value.shape and np.array_equal(read, value)
    again = pickle.loads(pickle.dumps(read))  # saved again, they are NumPy's own
    assert type(again) is type(value) and np.array_equal(again, value)


def test_the_names_of_numpy_1_are_read_too(tmp_path):
    state = content(extra_state={"train_iterator": {"epoch": 1}, "x": np.arange(3), "y": np.float64(2.5)})
    path = save(tmp_path / "c.pt", state, LEGACY)  # not compressed, so that the names can be changed
    old = path.read_bytes()
    for new in (b"numpy._core", b"numpy.core"):
        path.write_bytes(old.replace(b"numpy._core.", new + b".").replace(b"numpy.core.", new + b"."))
        assert new + b"." in path.read_bytes()
        read = load(path)["extra_state"]
        assert read["x"].tolist() == [0, 1, 2] and read["y"] == 2.5


def test_meters_of_arrays_go_on_counting(tmp_path):
    """What fairseq's translation task logs for BLEU, restored in the middle of an epoch."""
    meter = metrics.AverageMeter()
    meter.update(np.array([3, 1]), 1)
    path = save(tmp_path / "c.pt", content(extra_state={"train_iterator": {"epoch": 1}, "m": meter.state_dict()}))
    restored = metrics.AverageMeter()
    restored.load_state_dict(load(path)["extra_state"]["m"])
    restored.update(np.array([1, 1]), 1)
    assert restored.sum.tolist() == [4, 2] and restored.count == 2
    assert type(pickle.loads(pickle.dumps(restored.state_dict()))["sum"]) is np.ndarray


def test_arrays_of_other_things_are_not_loaded_and_harm_nobody(tmp_path):
    others = {
        "objects": np.array([{}], dtype=object),
        "fields": np.zeros(1, dtype=[("a", "i4")]),
        "text": np.array(["a"]),
    }
    for name, value in others.items():
        state = content(extra_state={"train_iterator": {"epoch": 1}, "x": value, "y": np.arange(2)})
        read = load(save(tmp_path / f"{name}.pt", state))
        assert isinstance(read["extra_state"]["x"], NotLoaded), name


def test_numpys_own_rebuilders_never_see_what_a_file_says():
    """NumPy takes an array of objects from raw bytes, if only the type's flags say so: pointers that the file
    chooses.
    """
    kind = safe_reader.STAND_INS["numpy.dtype"]
    array = safe_reader.reconstruct(safe_reader.STAND_INS["numpy.ndarray"], (0,), b"b")
    with pytest.raises(safe_reader.NotPlain):
        kind("O8", False, True)
    plain = kind("i8", False, True)
    for state in [
        (1, (1,), np.dtype(object), False, b"A" * 8),
        (1, (2,), plain, False, b"A" * 8),
        (1, (-1,), plain, False, b""),
        (1, [1], plain, False, b"A" * 8),
        (1, (1,), plain, False, ["A"]),
        (1, (1 << 62,), plain, False, b"A" * 8),
    ]:
        with pytest.raises(safe_reader.NotPlain):
            array.__setstate__(state)
    with pytest.raises(safe_reader.NotPlain):
        plain.__setstate__((3, "|", None, ("a",), {"a": (object, 0)}, 8, 1, 0))
    for args in [(4,), ((4,), "O")]:
        with pytest.raises(safe_reader.NotPlain):
            PlainArray(*args)
    assert array.shape == (0,)


def test_nothing_stays_allowed(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load(save(tmp_path / "c.pt", content(extra_state={"train_iterator": {"epoch": 1}, "x": np.arange(2)})))
    assert set(torch.serialization.get_safe_globals()) == before


# -- objects of fairseq's
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [ZIP, LEGACY])
@pytest.mark.parametrize(
    "name", ["fairseq.meters.AverageMeter", "fairseq.logging.meters.TimeMeter", "fairseq.gone.Thing"]
)
def test_objects_of_fairseqs_outside_of_the_model_are_replaced(tmp_path, monkeypatch, name, form):
    meters = OrderedDict(train_loss=object_of(name, monkeypatch, {"sum": 2.5}), other=1)
    path = save(tmp_path / "c.pt", content(extra_state={"train_iterator": {"epoch": 1}, "train_meters": meters}), form)
    monkeypatch.undo()
    read = load(path)["extra_state"]["train_meters"]
    assert isinstance(read["train_loss"], NotLoaded) and not vars(read["train_loss"]) and read["other"] == 1
    assert pickle.loads(pickle.dumps(read)) == OrderedDict(
        train_loss=OrderedDict(), other=1
    )  # what is saved again is plain
    for use in (lambda m: m.sum, lambda m: m["sum"], lambda m: "sum" in m, list, len, bool, lambda m: m()):
        with pytest.raises(CheckpointError, match=f"the checkpoint's {name} was not loaded.*--reset-meters"):
            use(read["train_loss"])


@pytest.mark.parametrize("part", ["model", "args", "cfg", "task_state"])
def test_objects_in_what_is_needed_are_refused_by_name(tmp_path, monkeypatch, part):
    for inside in (lambda x: {"x": x}, lambda x: {"x": [(1, x)]}, lambda x: Namespace(x=x), type, lambda x: x):
        state = content(**{part: inside(object_of("fairseq.odd.Thing", monkeypatch))})
        said = refusal(save(tmp_path / "c.pt", state))
        assert f"holds a fairseq.odd.Thing in its '{part}', where only plain data can be used" in said


def test_an_optimizers_history_that_was_not_loaded_is_one_line(tmp_path, monkeypatch):
    path = save(tmp_path / "c.pt", content(optimizer_history=[object_of("fairseq.odd.Thing", monkeypatch)]))
    with pytest.raises(CheckpointError, match="the checkpoint's fairseq.odd.Thing was not loaded"):
        load(path)


# -- what could run code
# -------------------------------------------------------------------------------------------------

PLACES = {
    "the top": lambda x: content(more=x),
    "the model": lambda x: content(model={"w": x}),
    "the arguments": lambda x: content(args=Namespace(arch="transformer", x=x)),
    "the configuration": lambda x: content(cfg={"task": {"x": x}}),
    "the optimizer's history": lambda x: content(
        optimizer_history=[{"lr_scheduler_state": {"best": x}, "num_updates": 1}]
    ),
    "the extra state": lambda x: content(extra_state={"train_iterator": {"epoch": 1}, "x": x}),
    "the whole": lambda x: x,
}


@pytest.mark.parametrize("form", [ZIP, LEGACY])
@pytest.mark.parametrize("place", PLACES)
def test_a_call_is_refused_wherever_it_stands_and_not_made(tmp_path, monkeypatch, place, form):
    made = tmp_path / "made"
    made.mkdir()
    call = Calls(tempfile.mkdtemp, "", "marker", str(made))
    around = object_of("fairseq.meters.AverageMeter", monkeypatch, {"sum": call})
    for value in (call, around, Calls(type(around), call)):
        path = save(tmp_path / "c.pt", PLACES[place](value), form)
        assert list(made.iterdir()) == []
        said = refusal(path)
        assert "could run code when loaded" in said and "GLOBAL tempfile.mkdtemp" in said
        assert said.endswith(f"nar-convert fairseq {path} --out FILE writes a copy without them")
        with pytest.raises(CheckpointError):
            compat.checked(path)
    assert list(made.iterdir()) == []
    torch.load(save(tmp_path / "c.pt", PLACES[place](call), form), weights_only=False)
    assert list(made.iterdir())  # the trap works


@pytest.mark.parametrize("forced", [False, True])
def test_a_function_of_fairseqs_is_not_called_even_where_pytorch_is_told_to_trust(tmp_path, monkeypatch, forced):
    plugin = tmp_path / "a_plugin"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(f"import os; os.mkdir({str(tmp_path / 'marker')!r})\n")
    from fairseq.utils import import_user_module

    call = Calls(import_user_module, Namespace(user_dir=str(plugin)))
    path = save(tmp_path / "c.pt", content(extra_state={"train_iterator": {"epoch": 1}, "x": call}))
    if forced:  # PyTorch's switch for torch.load without weights_only, which is how fairseq calls it
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert isinstance(load(path)["extra_state"]["x"], NotLoaded)
    assert not (tmp_path / "marker").exists() and "a_plugin" not in sys.modules


# -- nar-convert fairseq
# -----------------------------------------------------------------------------------------------------


def converted(path, out) -> str:
    convert.main(["fairseq", str(path), "--out", str(out)])
    return load(out)


def conversion_refused(path, out) -> str:
    with pytest.raises(SystemExit) as stop:
        convert.main(["fairseq", str(path), "--out", str(out)])
    said = stop.value.code
    assert (
        said.startswith("nar-convert: ")
        and "\n" not in said
        and not out.exists()
        and not list(out.parent.glob("*.tmp"))
    )
    return said


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_a_checkpoint_with_a_plugins_objects_is_copied_without_them(tmp_path, monkeypatch, capsys, form):
    mine, call = object_of("their_plugin.Meter", monkeypatch), Calls(tempfile.mkdtemp, "", "marker", str(tmp_path))
    state = content(
        extra_state={
            "train_iterator": {"epoch": 7},
            "mine": [mine],
            "call": call,
            "evaluated": Calls(eval, "1"),
            "kept": 3,
        },
        task_state={"theirs": mine, "symbols": {"source": "a"}},
        last_optimizer_state={"state": torch.ones(2)},
        more=mine,
    )
    path, out = save(tmp_path / "c.pt", state, form), tmp_path / "new" / "copy.pt"
    monkeypatch.undo()
    refusal(path)
    state = converted(path, out)
    assert state["model"]["w"].tolist() == [0, 1, 2] and state["args"].arch == "transformer"
    assert state["extra_state"] == {"train_iterator": {"epoch": 7}, "kept": 3}
    assert state["task_state"] == {"symbols": {"source": "a"}} and state["last_optimizer_state"]["state"].tolist() == [
        1,
        1,
    ]
    assert state["optimizer_history"][0]["criterion_name"] == "CrossEntropyCriterion" and "more" not in state
    torch.load(out, weights_only=True)  # anybody can read it
    said = capsys.readouterr().out
    assert f"checkpoint: {out}\n" in said and "extra_state.mine (their_plugin.Meter)" in said
    assert "extra_state.evaluated (builtins.eval)" in said and "left out: more (their_plugin.Meter)" in said
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["new"] and [p.name for p in out.parent.iterdir()] == [
        "copy.pt"
    ]


def test_a_history_that_is_left_out_takes_the_optimizer_with_it(tmp_path, monkeypatch):
    mine = object_of("their_plugin.Schedule", monkeypatch)
    history = [{"lr_scheduler_state": mine, "num_updates": 9}]
    path = save(tmp_path / "c.pt", content(optimizer_history=history, extra_state=mine, last_optimizer_state={"x": 1}))
    state = converted(path, tmp_path / "copy.pt")
    assert "last_optimizer_state" not in state and state["optimizer_history"][0]["num_updates"] == 0
    assert state["extra_state"]["train_iterator"]["epoch"] == 1


def test_a_good_checkpoint_is_copied_as_it_is(tmp_path, capsys):
    path = save(tmp_path / "c.pt", content())
    assert converted(path, tmp_path / "copy.pt")["extra_state"] == load(path)["extra_state"]
    assert "left out: nothing" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["the model", "the arguments", "the configuration"])
def test_what_is_needed_cannot_be_left_out(tmp_path, monkeypatch, place):
    path = save(tmp_path / "c.pt", PLACES[place](object_of("their_plugin.Thing", monkeypatch)))
    assert "holds a their_plugin.Thing in its '" in conversion_refused(path, tmp_path / "copy.pt")


def test_what_cannot_be_copied_is_said_and_nothing_is_written(tmp_path):
    out = tmp_path / "copy.pt"
    blocked = save(tmp_path / "blocked.pt", content(more=Calls(__import__("os").mkdir, str(tmp_path / "marker"))))
    said = conversion_refused(blocked, out)
    assert "posix.mkdir" in said and "could run code" in said and "nar-convert fairseq" not in said
    assert not (tmp_path / "marker").exists()
    cut = tmp_path / "checkpoint_last.pt"
    cut.write_bytes(blocked.read_bytes()[:100])
    assert conversion_refused(cut, out).startswith(f"nar-convert: {cut} is truncated")
    assert "no checkpoint at" in conversion_refused(tmp_path / "gone.pt", out)
    good = save(tmp_path / "good.pt", content())
    before = good.read_bytes()
    with pytest.raises(SystemExit, match="is the checkpoint itself"):
        convert.main(["fairseq", str(good), "--out", str(good)])
    assert good.read_bytes() == before
