"""The mean of checkpoints: its numbers, which checkpoints of a run it takes, and what it refuses."""

import os

import pytest
import torch
from in_process import own_refusal
from saved import save

from nar_plugins.checkpoint_io.average import average, candidates, choose
from nar_plugins.cli.average import main
from nar_plugins.compat import checked


def made(path, **changes):
    """A checkpoint of a tiny cmlm; ``changes`` are entries of its extra_state, and ``update``."""
    seed, update = changes.pop("seed", 1), changes.pop("update", 1)
    save(path, changes.pop("arch", "cmlm"), *changes.pop("flags", ()), seed=seed)
    state = torch.load(path, weights_only=False)
    state["optimizer_history"][-1]["num_updates"] = update
    state["last_optimizer_state"] = {"state": torch.ones(3)}
    state["extra_state"].update(changes)
    torch.save(state, path)
    return path


def run_folder(folder, scores, **more):
    """A --save-dir with one checkpoint an epoch, whose validation gave ``scores``, and fairseq's two copies."""
    for epoch, score in enumerate(scores, 1):
        made(folder / f"checkpoint{epoch}.pt", seed=epoch, update=10 * epoch, val_loss=score, **more)
    made(folder / "checkpoint_last.pt", seed=len(scores), update=10 * len(scores), val_loss=scores[-1], **more)
    best = scores.index(min(scores)) + 1
    made(folder / "checkpoint_best.pt", seed=best, update=10 * best, val_loss=min(scores), **more)
    return folder


def test_every_parameter_is_the_mean_and_what_is_shared_stays_shared(tmp_path):
    paths = [made(tmp_path / f"{seed}.pt", seed=seed, update=seed) for seed in (1, 2, 3)]
    average(paths, tmp_path / "average.pt")
    states = [checked(path)["model"] for path in paths]
    new = checked(tmp_path / "average.pt")
    assert new["model"].keys() == states[0].keys()
    for name, value in new["model"].items():
        wanted = sum(state[name].double() for state in states) / 3
        assert value.dtype == states[0][name].dtype
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    tables = [new["model"][f"{name}.weight"] for name in ("encoder.embed_tokens", "decoder.embed_tokens")]
    assert tables[0].data_ptr() == tables[1].data_ptr()
    assert os.path.getsize(tmp_path / "average.pt") < 1.1 * os.path.getsize(paths[0])
    assert new["last_optimizer_state"] is None and new["extra_state"]["averaged"] == ["1.pt", "2.pt", "3.pt"]
    assert new["optimizer_history"][-1]["num_updates"] == 3  # the last one's


def test_the_checkpoints_are_left_as_they_were(tmp_path):
    paths = [made(tmp_path / f"{seed}.pt", seed=seed) for seed in (1, 2)]
    before = [path.read_bytes() for path in paths]
    average(paths, tmp_path / "average.pt")
    assert [path.read_bytes() for path in paths] == before


def test_counters_are_the_last_checkpoints(tmp_path):
    paths = [made(tmp_path / f"{seed}.pt", seed=seed) for seed in (1, 2)]
    for number, path in enumerate(paths):
        state = torch.load(path, weights_only=False)
        state["model"]["decoder.version"] = torch.tensor([number + 3])
        torch.save(state, path)
    average(paths, tmp_path / "average.pt")
    assert checked(tmp_path / "average.pt")["model"]["decoder.version"].tolist() == [4]


def test_best_and_last_of_a_run_count_each_update_once(tmp_path):
    folder = run_folder(tmp_path, [5.0, 3.0, 4.0, 3.5])
    (folder / "checkpoint_average.pt.tmp").touch()
    assert [candidate.update for candidate in candidates(folder)] == [10, 20, 30, 40]
    assert [path.name for path in choose(folder, last=2)] == ["checkpoint3.pt", "checkpoint4.pt"]
    assert [path.name for path in choose(folder, best=2)] == ["checkpoint2.pt", "checkpoint4.pt"]


def test_best_follows_the_metrics_direction(tmp_path):
    folder = run_folder(tmp_path, [20.0, 30.0, 25.0])
    for path in folder.glob("checkpoint*.pt"):
        state = torch.load(path, weights_only=False)
        state["cfg"]["checkpoint"]["maximize_best_checkpoint_metric"] = True
        torch.save(state, path)
    assert [path.name for path in choose(folder, best=2)] == ["checkpoint2.pt", "checkpoint3.pt"]


def test_an_average_of_a_run_is_no_candidate(tmp_path):
    folder = run_folder(tmp_path, [3.0, 2.0])
    average(choose(folder, last=2), folder / "average.pt")
    average(choose(folder, last=2), folder / "checkpoint.average.pt")
    assert len(candidates(folder)) == 2


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Checkpoints that have no average with one.pt, and folders."""
    folder = tmp_path_factory.mktemp("unequal")
    for name in ("run", "empty"):
        (folder / name).mkdir()
    made(folder / "one.pt")
    made(folder / "two.pt", seed=2)
    made(folder / "wide.pt", flags=("--decoder-ffn-embed-dim=32",))
    made(folder / "deep.pt", flags=("--decoder-layers=2",))
    made(folder / "other.pt", arch="nat", flags=("--source-copy=uniform",))
    (folder / "broken.pt").write_bytes((folder / "two.pt").read_bytes()[:5000])
    run_folder(folder / "run", [3.0, 1.0, 2.0])
    return folder


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["one.pt"], "an average needs two checkpoints at least"),
        (["one.pt", "one.pt"], "one.pt is given twice"),
        (["one.pt", "two.pt", "--out", "one.pt"], "--out one.pt is one of the checkpoints"),
        (["gone.pt", "two.pt", "--out", "empty"], "--out empty: this is a folder, and not a file"),
        (["gone.pt", "two.pt", "--out", "one.pt/new"], "--out one.pt/new: no folder 'one.pt'"),
        (["one.pt", "nothing.pt"], "no checkpoint at nothing.pt"),
        (["one.pt", "nothing.pt", "--out", "two.pt"], "no checkpoint at nothing.pt"),
        (["one.pt", "broken.pt"], "broken.pt is truncated or not a PyTorch checkpoint"),
        (["one.pt", "other.pt"], "one.pt is a cmlm and other.pt a nat"),
        (["one.pt", "wide.pt"], "only checkpoints of one model have an average"),
        (["one.pt", "deep.pt"], "only checkpoints of one model have an average"),
        (["run", "one.pt", "--best", "2"], "--best 2 takes one folder"),
        (["run"], "a folder needs --best N or --last N"),
        (["run", "--best", "1"], "--best 1: an average needs two checkpoints at least"),
        (["run", "--best", "5"], "run has 3 validated checkpoints and 5 are asked for"),
        (["run", "--last", "4"], "run has 3 checkpoints and 4 are asked for"),
        (["empty", "--last", "4"], "empty has no checkpoint of fairseq-train"),
    ],
)
def test_what_has_no_average_is_refused_in_one_line(unequal, monkeypatch, arguments, message):
    monkeypatch.chdir(unequal)
    before = (unequal / "one.pt").read_bytes()
    if "--out" not in arguments:
        arguments += ["--out", "average.pt"]
    assert message in own_refusal(main, *arguments)
    assert not (unequal / "average.pt").exists() and (unequal / "one.pt").read_bytes() == before


def test_other_dictionaries_are_named(tmp_path):
    paths = [made(tmp_path / f"{seed}.pt", seed=seed) for seed in (1, 2)]
    for path, word in zip(paths, ("dog", "cat")):
        state = torch.load(path, weights_only=False)
        state["task_state"] = {"symbols": {"target": f"<s>\n{word}"}}
        torch.save(state, path)
    with pytest.raises(ValueError, match="dog.*cat|cat.*dog"):
        average(paths, tmp_path / "average.pt")
