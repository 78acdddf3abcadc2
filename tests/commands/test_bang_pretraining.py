"""The task bang_pretraining through fairseq's commands, with a stand-in model: data, resuming, bad input.

The stand-in sees everything that a batch has and costs nothing; BANG's own model is tested with its loss.
"""

import json
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from in_process import here, refusal

from nar_plugins.data.dictionary import load_dictionary

USER_DIR = ROOT / "nar_plugins"
TASK = ("--user-dir", USER_DIR, "--task", "bang_pretraining", "--cpu")
TRAIN = (
    *TASK,
    "--arch",
    "span_stand_in",
    "--criterion",
    "cross_entropy",
    "--optimizer",
    "adam",
    "--lr",
    "1e-2",
    "--max-tokens",
    "300",
    "--tokens-per-sample",
    "100",
    "--seed",
    "3",
    "--num-workers",
    "0",
    "--no-progress-bar",
    "--required-batch-size-multiple",
    "1",
    "--log-format",
    "json",
    "--log-interval",
    "1",
)
SEEN = []  # the batches that the stand-in was given in training


@register_model("span_stand_in")
class SpanStandIn(BaseFairseqModel):
    """Guesses a hidden token from the one before it and its place, with dropout."""

    def __init__(self, words: int, positions: int, pad: int):
        super().__init__()
        self.words, self.places = nn.Embedding(words, 8), nn.Embedding(positions + pad + 2, 8)
        self.out, self.dropout, self.positions = nn.Linear(8, words), nn.Dropout(0.1), positions

    @staticmethod
    def add_args(parser):
        parser.add_argument("--stand-in-positions", type=int, default=600)

    @classmethod
    def build_model(cls, args, task):
        return cls(len(task.source_dictionary), args.stand_in_positions, task.source_dictionary.pad())

    def forward(self, src_tokens, src_lengths, prev_output_tokens, positions, target_idx):
        if self.training:
            SEEN.append([t.clone() for t in (src_tokens, prev_output_tokens, positions, target_idx)])
        x = self.words(prev_output_tokens) + self.places(positions) + self.words(src_tokens).mean(1, keepdim=True)
        return self.out(self.dropout(x)), None

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return net_output[0].log_softmax(-1)

    def max_positions(self):
        return self.positions, self.positions


@register_model_architecture("span_stand_in", "span_stand_in")
def span_stand_in(args):
    pass


def text(lines: int, seed: int, prefix: str = "w") -> str:
    rng = random.Random(seed)
    return "".join(
        " ".join(f"{prefix}{rng.randint(0, 50)}" for _ in range(rng.randint(0, 30))) + "\n" for _ in range(lines)
    )


def binarise(folder: Path, splits: dict, *flags) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        (folder / split).write_text(lines, encoding="utf-8")
    given = [f"--{split}pref={folder / split}" for split in splits]
    here("fairseq-preprocess", "--only-source", *given, "--destdir", folder / "bin", *flags)
    return folder / "bin"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return binarise(tmp_path_factory.mktemp("raw"), {"train": text(300, 1), "valid": text(40, 2)})


def samples(data: Path) -> int:
    """How many samples of 100 tokens the training text makes; one of fewer than 8 cannot be masked."""
    tokens = sum(len(line) for line in data_utils.load_indexed_dataset(str(data / "train")))
    return tokens // 100 + (tokens % 100 >= 8)


def curve(folder: Path, data, *flags, caplog) -> dict:
    """Number of the update -> (loss, gradient norm) of a training."""
    caplog.clear()
    with caplog.at_level("INFO"):
        here("fairseq-train", data, *TRAIN, "--save-dir", folder, *flags)
    points = {}
    for record in caplog.records:
        if record.name == "train_inner" and "{" in record.getMessage():
            values = json.loads(record.getMessage())
            points[int(values["num_updates"])] = (values["loss"], values["gnorm"])
    return points


def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, caplog):
    SEEN.clear()
    whole = curve(tmp_path / "whole", data, "--max-update", 60, caplog=caplog)
    batches = list(SEEN)
    assert sorted(whole) == list(range(1, 61)) and len(batches) >= 60
    SEEN.clear()
    first = curve(tmp_path / "parts", data, "--max-update", 23, caplog=caplog)
    rest = curve(tmp_path / "parts", data, "--max-update", 60, caplog=caplog)
    assert min(rest) == 24 and {**first, **rest} == whole
    assert "loaded checkpoint" in caplog.text.lower()


def test_an_epoch_has_other_spans_and_every_sample_once(data, tmp_path, caplog):
    SEEN.clear()
    curve(tmp_path / "save", data, "--max-epoch", 2, "--no-save", caplog=caplog)
    assert "target tokens an update" in caplog.text and "the paper's 147,456" in caplog.text
    half = len(SEEN) // 2
    epochs = [{tuple(row.tolist()) for batch in part for row in batch[0]} for part in (SEEN[:half], SEEN[half:])]
    assert len(epochs[0]) == len(epochs[1]) == samples(data)
    assert not epochs[0] & epochs[1]
    for _, previous, positions, offsets in SEEN:
        real = previous.ne(1)
        assert positions[real].min() >= 2 and positions[~real].eq(1).all() and offsets.max() == 8


def test_validation_has_the_same_spans_every_time(data, tmp_path, caplog):
    curve(tmp_path / "save", data, "--max-update", 3, "--disable-validation", caplog=caplog)
    checkpoint = tmp_path / "save" / "checkpoint_last.pt"
    losses = []
    for batch in (300, 1000):
        with caplog.at_level("INFO"):
            caplog.clear()
            here("fairseq-validate", data, *TASK, "--path", checkpoint, "--max-tokens", batch)
        losses.append(re.search(r"loss (\S+)", caplog.text).group(1))
    assert losses[0] == losses[1]  # and whatever the batches are


def test_the_dictionary_gets_a_mask_at_its_end_and_the_checkpoint_keeps_it(data, tmp_path, caplog):
    curve(tmp_path / "save", data, "--max-update", 1, "--disable-validation", caplog=caplog)
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)
    symbols = state["task_state"]["symbols"]
    ours = [*load_dictionary(str(data / "dict.txt")).symbols, "<mask>"]
    assert symbols["source"].split("\n") == symbols["target"].split("\n") == ours  # as nar_translation keeps them
    masks = torch.cat([batch[0].flatten() for batch in SEEN]).eq(len(ours) - 1)
    assert masks.any()


def test_shards_take_turns(data, tmp_path, caplog):
    other = binarise(tmp_path, {"train": text(300, 8)}, "--srcdict", data / "dict.txt")
    SEEN.clear()
    curve(tmp_path / "save", f"{data}:{other}", "--max-epoch", 2, "--no-save", caplog=caplog)
    assert sum(len(batch[0]) for batch in SEEN) == samples(data) + samples(other) != 2 * samples(data)


BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(51))]


def test_a_bert_dictionary_keeps_its_ids_and_masks_with_its_own_symbol(tmp_path, caplog):
    (tmp_path / "dict.bert").write_text("".join(f"{s} 1\n" for s in BERT))
    data = binarise(
        tmp_path,
        {"train": text(100, 1), "valid": text(40, 2)},
        "--user-dir",
        USER_DIR,
        "--task",
        "bang_pretraining",
        "--srcdict",
        tmp_path / "dict.bert",
    )
    assert (data / "dict.txt").read_text() == (tmp_path / "dict.bert").read_text()
    SEEN.clear()
    curve(tmp_path / "save", data, "--max-update", 4, "--no-save", caplog=caplog)
    source = torch.cat([batch[0].flatten() for batch in SEEN])
    assert source.eq(5).any() and source.max() < len(BERT) and not source.eq(1).any()
    positions = torch.cat([batch[2].flatten() for batch in SEEN])
    assert positions.max() <= 99 and positions[positions.ne(0)].min() >= 1  # pad is 0: the index in the source itself


def test_a_mask_symbol_of_the_users_own(tmp_path, caplog):
    data = binarise(tmp_path, {"train": text(60, 1).replace("w7", "<hide>"), "valid": text(40, 2)})
    SEEN.clear()
    curve(tmp_path / "save", data, "--max-update", 2, "--no-save", "--mask-symbol", "<hide>", caplog=caplog)
    hide = load_dictionary(str(data / "dict.txt")).index("<hide>")
    assert torch.cat([batch[0].flatten() for batch in SEEN]).eq(hide).float().mean() > 0.08
    lines = sum("<hide>" in line for line in (tmp_path / "train").read_text().split("\n"))
    said = f"train: reserved symbols as words of the text: <hide> in {lines} of 60 sentences (read as <unk>)"
    assert lines and said in caplog.text
    assert refusal("fairseq-train", data, *TRAIN, "--mask-symbol", "<other>") == (
        "--mask-symbol <other> is not in the dictionary: leave it out, and <mask> is appended"
    )


# -- bad input ---------------------------------------------------------------------------------------------------------


def train(data, *flags) -> str:
    return refusal("fairseq-train", data, *TRAIN, "--no-save", "--max-update", "2", *flags)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--sample-break-mode", "eos"], "--sample-break-mode eos does not work with numpy 2"),
        (["--tokens-per-sample", "1"], "--tokens-per-sample 1: at least two"),
        (["--tokens-per-sample", "601"], "--tokens-per-sample 601 is more than the model's 600 positions"),
        (
            ["--tokens-per-sample", "7"],
            "valid: no sample is long enough to mask (the longest has 7 tokens, a span needs 8)",
        ),
        (["--span-block", "0"], "--span-block 0"),
        (["--span-block", "6"], "--span-ratio 0.15 of --span-block 6 hides no token"),
        (["--span-ratio", "1.5"], "--span-ratio 1.5"),
        (["--span-ratio", "a"], "--span-ratio a"),
        (["--max-tokens", "50"], "no sample fits 50 tokens"),
        (["--dataset-impl", "raw"], "--dataset-impl raw"),
    ],
)
def test_options_that_make_no_sense_are_refused(data, flags, said):
    assert said in train(data, *flags)


@pytest.mark.parametrize("mode", ["complete", "complete_doc"])
def test_the_other_break_modes_train(data, tmp_path, caplog, mode):
    assert len(curve(tmp_path, data, "--sample-break-mode", mode, "--max-update", 2, "--no-save", caplog=caplog)) == 2


def test_a_corpus_without_a_sample_long_enough_is_refused(data, tmp_path):
    short = binarise(tmp_path, {"train": "w1 w2\n", "valid": text(40, 2)}, "--srcdict", data / "dict.txt")
    assert train(short).startswith("train: no sample is long enough to mask (the longest has 3 tokens, a span needs 8)")


def test_short_and_empty_samples_are_skipped_and_counted(data, tmp_path, caplog):
    lines = text(60, 1) + "\n\nw1\n"
    made = binarise(tmp_path, {"train": lines, "valid": text(40, 2)}, "--srcdict", data / "dict.txt")
    curve(
        tmp_path / "s",
        made,
        "--sample-break-mode",
        "complete",
        "--tokens-per-sample",
        20,
        "--max-update",
        1,
        "--no-save",
        caplog=caplog,
    )
    assert re.search(r"train: \d+ of \d+ samples are too short to mask: skipped", caplog.text)


def test_data_that_are_not_there_or_of_another_kind_are_named(data, tmp_path):
    assert "no data folder" in train(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no dictionary" in train(tmp_path / "empty")
    (tmp_path / "empty" / "dict.txt").write_bytes((data / "dict.txt").read_bytes())
    said = train(tmp_path / "empty")
    assert "valid: no file" in said and "--only-source" in said


def test_an_empty_or_a_broken_or_a_foreign_split_is_refused(data, tmp_path):
    empty = binarise(tmp_path / "e", {"train": "", "valid": text(40, 2)}, "--srcdict", data / "dict.txt")
    assert "empty" in train(empty)
    foreign = binarise(
        tmp_path / "f", {"train": text(40, 1, "v"), "valid": text(40, 2)}, "--srcdict", data / "dict.txt"
    )
    assert train(foreign).startswith("train: 100% of the tokens are <unk>") or "% of the tokens are <unk>" in train(
        foreign
    )
    index = empty / "valid.idx"
    index.write_bytes(index.read_bytes()[:30])
    assert "corrupt" in train(empty)


def test_a_bert_dictionary_without_its_mask_is_refused(tmp_path, data):
    (tmp_path / "dict.txt").write_text("".join(f"{s} 1\n" for s in BERT if s != "[MASK]"))
    assert "has no [MASK]" in train(tmp_path)


def test_a_checkpoint_is_not_generated_from(data, tmp_path, caplog):
    curve(tmp_path, data, "--max-update", 1, "--disable-validation", caplog=caplog)
    said = refusal("fairseq-generate", data, *TASK, "--path", tmp_path / "checkpoint_last.pt", "--gen-subset", "valid")
    assert "decode its checkpoints with --task nar_translation" in said


def test_fine_tuning_from_another_vocabulary_is_refused(data, tmp_path, caplog):
    """The words have other ids; fairseq alone would load them without a sign."""
    curve(tmp_path / "save", data, "--max-update", 1, "--disable-validation", caplog=caplog)
    other = binarise(tmp_path / "other", {"train": text(300, 5), "valid": text(40, 2)})
    assert load_dictionary(str(other / "dict.txt")).symbols != load_dictionary(str(data / "dict.txt")).symbols
    said = train(other, "--finetune-from-model", tmp_path / "save" / "checkpoint_last.pt")
    assert "is not the checkpoint's: symbol" in said
    curve(
        tmp_path / "new",
        data,
        "--finetune-from-model",
        tmp_path / "save" / "checkpoint_last.pt",
        "--max-update",
        1,
        "--no-save",
        caplog=caplog,
    )
