"""Reserved symbols as words of the text: every command reads them alike, and autoregressive checkpoints as fairseq
does.
"""

import logging
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, hypotheses, random_sentences, write_pairs
from fairseq.models.transformer import TransformerModel
from in_process import here, refusal

from nar_plugins.cli import align
from nar_plugins.data.dictionary import load_dictionary
from nar_plugins.models.cmlm import CmlmModel

TASK = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
STOCK = ("--task", "translation", "--cpu")
TRAIN = (
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--max-tokens",
    "300",
    "--max-update",
    "1",
    "--num-workers",
    "0",
    "--seed",
    "3",
    "--no-progress-bar",
    "--disable-validation",
    "--max-source-positions",
    "40",
    "--max-target-positions",
    "40",
)
NAR = ("--criterion", "nar_loss", "--share-all-embeddings")
MODELS = {
    "ar": ("--arch", "transformer_tiny", "--criterion", "cross_entropy", "--share-all-embeddings"),
    "blockwise": ("--arch", "blockwise_tiny", "--criterion", "blockwise_loss", "--share-all-embeddings"),
    "bang": ("--arch", "bang_tiny", "--criterion", "bang_loss"),
    "cmlm": ("--arch", "cmlm_tiny", *NAR),
    "fertile": ("--arch", "nat_tiny", *NAR),
    "uniform": ("--arch", "nat_tiny", "--source-copy", "uniform", *NAR),
    "ctc": ("--arch", "nat_tiny", "--ctc", *NAR),
    "dag": ("--arch", "dag_tiny", "--upsample", "4", "--max-target-positions", "160", *NAR),
}
FLAGS = {
    "blockwise": ("--generator", "blockwise"),
    "bang": ("--bang-policy", "block", "--max-len-b", "12"),
    "ar": ("--max-len-b", "12"),
    "cmlm": ("--iterations", "2"),
}
PARALLEL = ("bang", "cmlm", "fertile", "uniform", "ctc", "dag")
ODD = ["w1 <mask> w3", "w7 <pad> <pad> w3 w4", "w2 <s> w4 </s> w5", "<mask> w6 <mask>", "w9 w8 <pad>", "w5"]
# "stranger" is in no dictionary: what the odd lines are to a parallel model
STRANGE = [line.replace("<mask>", "stranger").replace("<pad>", "stranger") for line in ODD]


def louder(path: Path, symbol: int) -> None:
    """Larger weights, so that a model of one update says something else for every source, and now and then
    ``symbol``.
    """
    state = torch.load(path, weights_only=True)
    for name, weight in state["model"].items():
        if weight.dim() > 1:
            words = name.endswith(("embed_tokens.weight", "output_projection.weight"))  # one table
            torch.manual_seed(5 if words else len(name))
            weight.copy_(torch.randn_like(weight) * (1.0 if "embed" in name or words else 0.2))
            if words:
                weight[symbol : symbol + 1] *= 1.5
    torch.save(state, path)


def corpus(folder: Path, held: bool) -> Path:
    """A binarised corpus whose dictionary file has ``<mask>`` or not; in training text stand 2 lines with each
    symbol.
    """
    text = [(line, line) for line in random_sentences(40, 1)]
    symbols = ["<pad>", "</s>", *["<mask>"] * held]
    text += [(f"w1 {symbol} w2 {symbol} w3", f"w4 {symbol} w5") for symbol in symbols for _ in range(2)]
    write_pairs(folder, text, "train")
    write_pairs(folder, [(line, line) for line in ODD], "test")
    sides = ("-s", "src", "-t", "tgt", "--joined-dictionary")
    # nothing is validated, but fairseq 0.12.2 loads the data in spite of --disable-validation
    write_pairs(folder, [(line, line) for line in random_sentences(3, 2)], "valid")
    prefixes = [f"--{split}pref={folder / split}" for split in ("train", "valid", "test")]
    here("fairseq-preprocess", *sides, *prefixes, "--destdir", folder / "bin")
    align.main([str(folder / "bin")])
    return folder / "bin"


@pytest.fixture(scope="module", params=[False, True], ids=["appended", "in the file"])
def made(request, tmp_path_factory) -> Namespace:
    """The corpus, a checkpoint of every kind, and one of fairseq's own task."""
    root = tmp_path_factory.mktemp("reserved")
    data, models = corpus(root, request.param), {}
    for name in ("ar", "cmlm", "uniform", "bang") if request.param else MODELS:
        here("fairseq-train", data, *TASK, *TRAIN, *MODELS[name], "--save-dir", root / name)
        models[name] = root / name / "checkpoint_last.pt"
    here("fairseq-train", data, *STOCK, *TRAIN, *MODELS["ar"], "--save-dir", root / "stock")
    models["stock"] = root / "stock" / "checkpoint_last.pt"
    for path in models.values():
        louder(path, load_dictionary(str(data / "dict.src.txt")).index("<mask>"))
    for name, lines in (("odd", ODD), ("strange", STRANGE)):
        (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Namespace(root=root, data=data, held=request.param, models=models)


def said(output: str) -> list:
    """(score, text) of every sentence in order."""
    found = hypotheses(output)
    assert sorted(found) == list(range(len(ODD)))
    return [(float(found[i][0][0]), found[i][0][1]) for i in range(len(ODD))]


def same(one: list, other: list) -> bool:
    return all(a[1] == b[1] and abs(a[0] - b[0]) < 1e-4 for a, b in zip(one, other))


def interactive(made, path: Path, *flags, task=TASK, text="odd") -> list:
    sides = ("-s", "src", "-t", "tgt", "--input", made.root / text, "--num-workers", "0")
    return said(here("fairseq-interactive", made.data, *task, *sides, "--path", path, *flags))


def generate(made, path: Path, *flags, task=TASK) -> list:
    every = ("--required-batch-size-multiple", "1", "--num-workers", "0")  # fairseq would drop the last sentences
    return said(here("fairseq-generate", made.data, *task, "--path", path, *every, *flags))


@pytest.mark.parametrize("name", MODELS)
def test_every_command_reads_a_line_alike_and_a_parallel_model_reads_unknown_words(made, name):
    if name not in made.models:
        pytest.skip("as with the appended symbol")
    path, flags = made.models[name], FLAGS.get(name, ())
    lines = interactive(made, path, *flags)
    assert same(generate(made, path, *flags), lines)
    assert len({round(score, 3) for score, _ in lines}) > 3  # so that a symbol that is read otherwise shows
    assert same(interactive(made, path, *flags, text="strange"), lines) == (name in PARALLEL)


def test_a_stock_checkpoint_says_what_it_says_under_fairseqs_task(made):
    path, length = made.models["stock"], ("--max-len-b", "12")
    for beam, ours in (("5", [()]), ("1", [("--beam", "1"), ("--generator", "blockwise")])):
        stock = interactive(made, path, *length, "--beam", beam, task=STOCK)
        if made.held:  # a word like others
            assert any("<mask>" in text for _, text in stock)
        for flags in ours:
            assert same(interactive(made, path, *length, *flags), stock)
            assert same(generate(made, path, *length, *flags), stock)


@pytest.mark.parametrize("name, model", [("cmlm", CmlmModel), ("ar", TransformerModel)])
def test_the_hub_reads_a_line_as_the_commands_do(made, name, model):
    path, settings = made.models[name], {"iterations": 2} if name == "cmlm" else {"max_len_b": 12}
    hub = model.from_pretrained(str(path.parent), path.name, str(made.data))
    hub.eval()
    assert hub.translate(ODD, **settings) == [text for _, text in interactive(made, path, *FLAGS[name])]


def test_what_is_in_the_training_text_is_said_once_a_side(made, tmp_path, caplog):
    for name, verb in (("cmlm", "read as <unk>"), ("ar", "kept")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            here("fairseq-train", made.data, *TASK, *TRAIN, *MODELS[name], "--save-dir", tmp_path / name)
        lines = [r.getMessage() for r in caplog.records if "reserved symbols" in r.getMessage()]
        sentences = 46 if made.held else 44
        each = [f"<pad> in 2 of {sentences} sentences ({verb})", f"</s> in 2 of {sentences} sentences (kept)"]
        each += [f"<mask> in 2 of {sentences} sentences ({verb})"] * made.held
        # ids of words follow their frequency, so <mask> stands last
        assert lines == [
            f"train ({side}): reserved symbols as words of the text: {', '.join(each)}" for side in ("src", "tgt")
        ]


def test_unknown_words_are_refused_where_they_say_something(made, tmp_path, caplog):
    """A line with two of five words unknown is translated, and validates; a validation set of another segmentation does
    not.
    """
    sides = ("-s", "src", "-t", "tgt", "--srcdict", made.data / "dict.src.txt", "--tgtdict", made.data / "dict.tgt.txt")
    strange = [(line.replace("w", "v"), line) for line in random_sentences(40, 4)]
    for split, text in (("train", [("w1 w2", "w1")] * 20), ("test", [("w1 q1 q2 w3 w4", "w1 w2")]), ("valid", strange)):
        write_pairs(tmp_path, text, split)
    prefixes = [f"--{split}pref={tmp_path / split}" for split in ("train", "test", "valid")]
    here("fairseq-preprocess", *sides, *prefixes, "--destdir", tmp_path / "bin")
    out = here("fairseq-generate", tmp_path / "bin", *TASK, "--path", made.models["cmlm"], "--num-workers", "0")
    assert list(hypotheses(out)) == [0]
    warning = "test (src): 40% of the tokens are <unk>: was the text segmented as for its dictionary?"
    assert warning in [record.getMessage() for record in caplog.records]
    command = ("fairseq-train", tmp_path / "bin", *TASK, *TRAIN, *MODELS["cmlm"], "--save-dir", tmp_path / "save")
    here(*(part for part in command if part != "--disable-validation"), "--valid-subset", "test")
    refused = refusal(*(part for part in command if part != "--disable-validation"))
    assert refused.startswith("valid (src): 100% of the tokens are <unk>")


def test_the_dictionary_is_what_the_test_says(made):
    assert ("<mask>" in load_dictionary(str(made.data / "dict.src.txt"))) == made.held
