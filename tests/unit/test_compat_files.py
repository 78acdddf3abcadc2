"""What fairseq writes and cuts: results of a run before, checkpoints beside a broken one, lengths in buckets."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import fairseq_cli.generate
import numpy as np
import pytest
import tiny
import torch
from fairseq.data import LanguagePairDataset, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from test_compat import content, refusal, save

from nar_plugins import compat

# -- results -----------------------------------------------------------------------------------------------------------

COMPLETE, PART = "S-0\tx\nH-0\t-1\ty\nH-1\t-1\ty\n", "S-0\tx\nH-0\t-1\tnew\n"


@pytest.fixture
def generate(monkeypatch, tmp_path):
    """A function (what the run writes, how it ends) -> the files afterwards; it ends by "return", "raise" or "kill"."""
    folder = tmp_path / "results"
    config = SimpleNamespace(
        common_eval=SimpleNamespace(results_path=str(folder)), dataset=SimpleNamespace(gen_subset="test")
    )

    def run(text, end):
        def main(cfg):
            if text is not None:  # fairseq opens the file before it looks at anything
                (folder / "generate-test.txt").write_text(text)
            if end == "raise":
                raise ValueError("refused")
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            return "score"

        monkeypatch.setattr(fairseq_cli.generate, "main", main)
        compat.commands.keep_results_of_a_run_before()
        if end == "return":
            assert fairseq_cli.generate.main(config) == "score"
        elif end == "raise":
            with pytest.raises(ValueError, match="refused"):
                fairseq_cli.generate.main(config)
        else:
            child = os.fork()
            if child == 0:
                fairseq_cli.generate.main(config)
                os._exit(0)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        return {p.name.removeprefix("generate-test"): p.read_text() for p in folder.iterdir()}

    return run


def test_two_killed_runs_leave_the_last_complete_result(generate, caplog):
    assert generate(COMPLETE, "return") == {".txt": COMPLETE}
    for _ in range(3):
        assert generate(PART, "kill") == {".txt": PART, ".before": COMPLETE}
    assert generate(PART, "raise") == {".txt": PART, ".before": COMPLETE}
    assert "is a part, of a run that was stopped; the last complete result stays in" in caplog.text
    assert "generate-test.before" in caplog.text
    assert generate("", "raise") == {".txt": COMPLETE}  # refused before the first hypothesis: as before
    assert generate(PART, "kill") == {".txt": PART, ".before": COMPLETE}
    assert generate(COMPLETE * 2, "return") == {".txt": COMPLETE * 2}


def test_a_part_of_the_first_run_is_never_taken_for_a_complete_result(generate, caplog):
    assert generate(PART, "kill") == {".txt": PART, ".before": ""}
    assert generate("H-0 less\n", "kill") == {".txt": "H-0 less\n", ".before": ""}
    assert generate("", "raise") == {}
    assert not caplog.text
    assert generate(COMPLETE, "return") == {".txt": COMPLETE}


def test_a_run_that_fails_before_it_writes_changes_nothing(generate):
    generate(COMPLETE, "return")
    assert generate(None, "raise") == {".txt": COMPLETE}
    generate(PART, "kill")
    assert generate(None, "raise") == {".txt": PART, ".before": COMPLETE}


# -- the advice for a broken checkpoint
# --------------------------------------------------------------------------------------


def beside(folder: Path, **states) -> Path:
    """Checkpoints, the newest last, beside a broken checkpoint_last.pt; the path of that one."""
    for age, (name, state) in enumerate(states.items()):
        save(folder / f"{name}.pt", state)
        os.utime(folder / f"{name}.pt", (1e9 + age, 1e9 + age))
    last = folder / "checkpoint_last.pt"
    last.write_bytes(b"PK\3\4 cut")
    return last


class Evil:
    def __reduce__(self):
        return eval, ("1",)


def test_only_a_checkpoint_that_loads_is_advised(tmp_path):
    last = beside(
        tmp_path, checkpoint1=content(), checkpoint2={"model": {}}, checkpoint3=content(more=Evil()), other=content()
    )
    assert f"the newest whole checkpoint is {tmp_path / 'checkpoint1.pt'}: " in refusal(last)
    (tmp_path / "checkpoint1.pt").unlink()
    assert refusal(last).endswith("no whole checkpoint stands beside it")


def test_none_of_two_models_is_advised(tmp_path):
    other = content(model={"w": torch.zeros(4)})
    last = beside(tmp_path, checkpoint1=content(), checkpoint2=content(), checkpoint3=other)
    said = refusal(last)
    assert "newest whole" not in said and said.endswith(
        "whole checkpoints stand beside it (checkpoint3.pt), but nothing tells which of them are of the same model"
    )


def test_a_file_that_no_training_wrote_gets_no_advice_to_copy(tmp_path):
    last = beside(tmp_path, checkpoint1=content())
    foreign = last.rename(tmp_path / "raw.pt")
    said = refusal(foreign)
    assert (
        "newest whole" not in said
        and "copy" not in said
        and "nothing tells which of them are of the same model" in said
    )


# -- buckets
# ---------------------------------------------------------------------------------------------------------------


def pairs(count=12):
    """Sources and targets of 2 to 9 tokens."""
    rng = np.random.default_rng(1)
    return [tuple(torch.tensor([*rng.integers(4, 24, n), 2]) for n in rng.integers(1, 9, 2)) for _ in range(count)]


def data_set(buckets: int, lines, dictionary) -> LanguagePairDataset:
    sides = [[line[side] for line in lines] for side in (0, 1)]
    sizes = [np.array([len(line) for line in side]) for side in sides]
    return LanguagePairDataset(
        sides[0],
        sizes[0],
        dictionary,
        sides[1],
        sizes[1],
        dictionary,
        left_pad_source=False,
        left_pad_target=False,
        num_buckets=buckets,
        shuffle=False,
    )


def test_buckets_are_those_of_fairseqs_definition():
    assert data_utils.get_buckets(np.array([1, 2, 3, 4, 5, 6, 7, 8]), 2).tolist() == [4, 8]
    assert data_utils.get_buckets(np.array([3, 3, 3, 9]), 3).tolist() == [3, 9]


def test_every_line_is_padded_to_its_bucket_and_in_a_batch():
    lines, task = pairs(), tiny.task()
    made = data_set(2, lines, task.target_dictionary)
    assert len(set(made.src_sizes)) == len(set(made.tgt_sizes)) == 2
    for number, (source, _) in enumerate(lines):
        item = made[number]
        assert len(item["source"]) == made.src_sizes[number] >= len(source)
        assert item["source"][: len(source)].tolist() == source.tolist() and item["source"][len(source) :].eq(1).all()
    for multiple in (1, 8):
        batches = made.batch_by_size(made.ordered_indices(), max_tokens=40, required_batch_size_multiple=multiple)
        assert sorted(np.concatenate(batches)) == list(range(len(lines)))
        for batch in batches:
            sizes = np.maximum(made.src_sizes, made.tgt_sizes)[batch]
            assert len(set(sizes)) == 1 and sizes.sum() <= 40


MODELS = {
    "ar": ("transformer_tiny", "cross_entropy", ()),
    "cmlm": ("cmlm_tiny", "nar_loss", ()),
    "ctc": ("nat_tiny", "nar_loss", ("--source-copy", "uniform", "--ctc")),
    "glancing": ("nat_tiny", "nar_loss", ("--source-copy", "soft", "--glancing", "0.5")),
    "dag": ("dag_tiny", "nar_loss", ("--upsample", "3", "--glancing", "0.5", "--max-target-positions", "90")),
    "blockwise": ("blockwise_tiny", "blockwise_loss", ()),
    "bang": ("bang_tiny", "bang_loss", ("--share-all-embeddings",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_translations_are_those_without_buckets(name):
    arch, criterion, flags = MODELS[name]
    flags = (*flags, "--dropout", "0", "--max-source-positions", "30", "--max-target-positions", "30")
    model, task = tiny.model(*flags, arch=arch, criterion=criterion)
    loss = task.build_criterion(
        convert_namespace_to_omegaconf(tiny.arguments(*flags, arch=arch, criterion=criterion)).criterion
    )
    lines, found = pairs(), {}
    for buckets in (0, 2):
        made = data_set(buckets, lines, task.target_dictionary)
        sample = made.collater([made[i] for i in (3, 5, 7, 8)])
        said = loss(model.train(), task.corrupt(sample, 1))
        generation = tiny.arguments(*flags, arch=arch, criterion=criterion)
        generation.beam = 1
        generator = task.build_generator([model.eval()], convert_namespace_to_omegaconf(generation).generation)
        texts = [h[0]["tokens"].tolist() for h in task.inference_step(generator, [model], sample)]
        widths = sample["net_input"]["src_tokens"].size(1), sample["target"].size(1)
        found[buckets] = (float(said[0]), int(said[1]), texts, widths)
    assert found[0][3] != found[2][3]  # padded further
    assert found[2][0] == pytest.approx(found[0][0], rel=1e-5) and found[2][1:3] == found[0][1:3]
