"""``dag`` trains, resumes, decodes and validates through fairseq's own commands, in bfloat16 and int8, too."""

import logging

import pytest
import torch
from conftest import hypotheses, preprocess, random_sentences, write_pairs
from in_process import here
from test_learning import TASK

from nar_plugins.modules.fast.forms import int8_lacks

TRAIN = (
    *TASK,
    *("--arch", "dag_tiny", "--upsample", 3, "--source-copy", "uniform", "--criterion", "nar_loss"),
    *("--glancing", "0.5:0.1@6", "--share-all-embeddings", "--dropout", 0.2, "--max-tokens", 300),
    *("--optimizer", "adam", "--lr", "1e-3"),
    *("--train-dtype", "bfloat16", "--seed", 3, "--no-progress-bar", "--no-epoch-checkpoints", "--disable-validation"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dag")
    for split, count in (("train", 120), ("valid", 20), ("test", 20)):
        write_pairs(folder, [(s, s) for s in random_sentences(count, count)], split)
    return preprocess(folder, folder / "bin")


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """Six updates, over several epochs."""
    folder = tmp_path_factory.mktemp("dag_whole")
    here("fairseq-train", data, *TRAIN, "--max-update", 6, "--save-dir", folder)
    return folder / "checkpoint_last.pt"


def weights(path) -> dict:
    return torch.load(path, weights_only=False)["model"]


def test_a_resumed_training_is_the_uninterrupted_one(data, checkpoint, tmp_path):
    for updates in (2, 6):
        here("fairseq-train", data, *TRAIN, "--max-update", updates, "--save-dir", tmp_path)
    found, wanted = weights(tmp_path / "checkpoint_last.pt"), weights(checkpoint)
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)
    assert all(weight.isfinite().all() for weight in wanted.values())


@pytest.mark.parametrize("strategy", ["lookahead", "greedy", "viterbi", "joint-viterbi"])
def test_fairseq_generate_gives_a_sentence_the_same_in_every_batch(data, checkpoint, strategy):
    flags = ("--path", checkpoint, "--dag-decode", strategy, "--num-workers", 0)
    whole, alone = (hypotheses(here("fairseq-generate", data, *TASK, *flags, "--batch-size", n)) for n in (20, 1))
    assert len(whole) == 20
    assert {i: lines[0][1] for i, lines in whole.items()} == {i: lines[0][1] for i, lines in alone.items()}


@pytest.mark.skipif(int8_lacks(torch.device("cpu")) is not None, reason="no int8 on this processor")
def test_int8_decodes_nearly_the_same(data, checkpoint):
    exact, found = (
        hypotheses(here("fairseq-generate", data, *TASK, "--path", checkpoint, "--decode-dtype", dtype))
        for dtype in ("float32", "int8")
    )
    pairs = [(a, b) for i in exact for a, b in zip(exact[i][0][1].split(), found[i][0][1].split())]
    assert sum(a == b for a, b in pairs) >= 0.6 * len(pairs)  # of a model that is sure of little


def test_validation_has_the_likelihood_and_counts_what_it_skips(data, checkpoint, tmp_path, caplog):
    pairs = [("w1", "w1 w2 w3 w4 w5 w6 w7 w8"), ("w1 w2", "w2 w1")]  # six vertices for nine tokens, and for three
    for split in ("train", "valid"):
        write_pairs(tmp_path, pairs, split)
    short = preprocess(tmp_path, tmp_path / "bin", srcdict=data / "dict.src.txt")
    with caplog.at_level(logging.INFO):
        here("fairseq-validate", short, *TASK, "--path", checkpoint, "--valid-subset", "valid", "--batch-size", 5)
    (line,) = [record.getMessage() for record in caplog.records if "nll_loss" in record.getMessage()]
    assert "skipped 1" in line and "nan" not in line
