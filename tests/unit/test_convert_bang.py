"""nar-convert bang: official checkpoints and ProphetNet's, from the fixture of tiny random weights."""

from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, hypotheses
from fairseq import checkpoint_utils, tasks
from in_process import here, own_refusal

from nar_plugins.checkpoint_io.convert_bang import check_names, expected_names, rename_bang, shape_flags
from nar_plugins.cli import convert

MASK_ROW = "decoder.ngram_input_embed.weight"


@pytest.fixture(scope="module")
def release():
    path = FIXTURES / "bang_release" / "tiny.npz"
    return np.load(path, allow_pickle=False)


@pytest.fixture(scope="module")
def weights(release):
    return {key[len("model.") :]: torch.tensor(release[key]) for key in release.files if key.startswith("model.")}


@pytest.fixture
def official(tmp_path, weights):
    """A function: changes to the weights and arguments -> the command line that converts such a checkpoint."""

    def make(symbols: int = 40, args=None, drop=(), **changed):
        model = {k: v for k, v in {**weights, **changed}.items() if k not in drop}
        torch.save({"args": args or Namespace(arch="bang_ar_nar_mixed_base"), "model": model}, tmp_path / "official.pt")
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(symbols - 5))]
        (tmp_path / "dict.bert.txt").write_text("".join(f"{s} 1\n" for s in names))
        return [
            "bang",
            str(tmp_path / "official.pt"),
            "--dict",
            str(tmp_path / "dict.bert.txt"),
            "--out",
            str(tmp_path / "new"),
        ]

    return make


refusal = partial(own_refusal, convert.main)


def test_the_fixture_has_exactly_the_releases_names(weights):
    assert sorted(expected_names(2, 2)) == sorted(k for k in weights if not k.endswith(".version"))
    check_names(weights, "official.pt")


def test_the_sizes_are_read_from_the_weights(weights):
    flags = shape_flags(weights, Namespace(), 0, "official.pt")
    assert flags == [
        "--max-source-positions=64",
        "--encoder-layers=2",
        "--encoder-embed-dim=32",
        "--encoder-ffn-embed-dim=64",
        "--encoder-attention-heads=4",
        "--max-target-positions=64",
        "--decoder-layers=2",
        "--decoder-embed-dim=32",
        "--decoder-ffn-embed-dim=64",
        "--decoder-attention-heads=4",
    ]


def test_of_prophetnets_two_rows_the_first_streams_is_kept(weights):
    """Its code reads row ngram - 1 for streams counted from 0: the first stream has the last row."""
    two = torch.cat([torch.zeros_like(weights[MASK_ROW]), weights[MASK_ROW]])
    renamed = rename_bang({**weights, MASK_ROW: two}, "prophetnet.pt")
    assert renamed[MASK_ROW].equal(weights[MASK_ROW]) and renamed[MASK_ROW].shape == (1, 32)


def test_fused_projections_of_an_older_fairseq_are_taken_apart(weights):
    fused = dict(weights)
    for name in ("encoder.layers.0.self_attn", "decoder.layers.1.encoder_attn"):
        for part in ("weight", "bias"):
            fused[f"{name}.in_proj_{part}"] = torch.cat([fused.pop(f"{name}.{letter}_proj.{part}") for letter in "qkv"])
    renamed = rename_bang(fused, "official.pt")
    assert renamed.keys() == weights.keys()
    assert all(renamed[key].equal(weights[key]) for key in weights)
    assert "decoder.layers.0.ngram_self_attn.in_proj_weight" in renamed  # that one is fused in the release


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"drop": [MASK_ROW]}, f"is no BANG checkpoint: it has no {MASK_ROW}"),
        ({MASK_ROW: torch.zeros(9, 32)}, f"{MASK_ROW} has 9 rows"),
        ({"drop": ["decoder.layers.1.fc1.bias"]}, "has no decoder.layers.1.fc1.bias"),
        (
            {"decoder.output_projection.weight": torch.zeros(40, 32)},
            "has decoder.output_projection.weight, which a bang has not",
        ),
        ({"symbols": 41}, "has 41 symbols, the checkpoint 40"),
        ({"args": Namespace(max_source_positions=512)}, "has 65 rows, so 64 positions, but its arguments say 512"),
        ({"args": Namespace(max_target_positions=65)}, "decoder.embed_positions has 66 rows"),
        ({"args": Namespace(num_buckets=16)}, "was trained with num_buckets 16: a bang has 32"),
    ],
)
def test_what_is_no_official_checkpoint_is_refused(official, changes, said):
    assert said in refusal(*official(**changes))


def test_a_dictionary_that_is_not_berts_is_refused(official, tmp_path):
    command = official()
    (tmp_path / "dict.bert.txt").write_text("".join(f"w{i} 1\n" for i in range(36)))
    assert "does not start with [PAD]" in refusal(*command)


def test_a_checkpoint_that_could_run_code_is_not_loaded(official, tmp_path):
    command = official()
    torch.save({"args": tmp_path, "model": {}}, tmp_path / "official.pt")
    assert "could run code" in refusal(*command)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_text("a file\n")
    assert refusal(*command).endswith(f"new/checkpoint.pt: no folder '{tmp_path / 'new'}'")


# -- with the model ----------------------------------------------------------------------------------------------------


def load(folder):
    for side in ("src", "tgt"):
        (folder / f"dict.{side}.txt").write_bytes((folder / "dict.txt").read_bytes())
    state = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint.pt"))
    state["cfg"]["task"].update(data=str(folder), source_lang="src", target_lang="tgt")
    task = tasks.setup_task(state["cfg"]["task"])
    models, _ = checkpoint_utils.load_model_ensemble([str(folder / "checkpoint.pt")], task=task)
    return models[0].eval(), task


def test_a_converted_checkpoint_has_the_releases_encoder(official, release, tmp_path):
    convert.main(official())
    model, task = load(tmp_path / "new")
    assert len(task.target_dictionary) == 40 and task.target_dictionary.pad() == 0
    assert model.args.nar_sees_bos
    source = torch.tensor(release["src"])
    with torch.no_grad():
        states = model.encoder(source, src_lengths=source.ne(0).sum(1))["encoder_out"][0]
    real = source.ne(0).T
    torch.testing.assert_close(states[real].double(), torch.tensor(release["encoder_out"])[real], rtol=0, atol=1e-5)


def test_official_nar_hides_the_start_token(official, tmp_path):
    convert.main([*official(), "--official-nar"])
    model, _ = load(tmp_path / "new")
    assert not model.args.nar_sees_bos


def test_a_converted_checkpoint_through_the_stock_commands(official, tmp_path):
    """fairseq-train --finetune-from-model and fairseq-generate take it."""
    convert.main(official())
    for split, lines in (("train", 40), ("valid", 4), ("test", 4)):
        for side in ("src", "tgt"):
            (tmp_path / f"{split}.{side}").write_text("".join(f"w{i % 7} w{i % 5 + 9} w3\n" for i in range(lines)))
    new, data = tmp_path / "new", tmp_path / "bin"
    ours = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation")
    here(
        "fairseq-preprocess",
        *ours,
        "-s",
        "src",
        "-t",
        "tgt",
        "--srcdict",
        new / "dict.txt",
        "--joined-dictionary",
        "--destdir",
        data,
        *(f"--{split}pref={tmp_path / split}" for split in ("train", "valid", "test")),
    )
    sizes = [
        f"--{side}-{name}={value}"
        for side in ("encoder", "decoder")
        for name, value in (("embed-dim", 32), ("ffn-embed-dim", 64), ("layers", 2), ("attention-heads", 4))
    ]
    positions = ("--max-source-positions", "64", "--max-target-positions", "64")
    here(
        "fairseq-train",
        data,
        *ours,
        "--arch",
        "bang",
        "--criterion",
        "bang_loss",
        *sizes,
        *positions,
        "--cpu",
        "--lr",
        "1e-4",
        "--optimizer",
        "adam",
        "--max-tokens",
        "200",
        "--max-update",
        "2",
        "--finetune-from-model",
        new / "checkpoint.pt",
        "--save-dir",
        tmp_path / "tuned",
    )
    for path in (new / "checkpoint.pt", tmp_path / "tuned" / "checkpoint_last.pt"):
        assert sorted(hypotheses(here("fairseq-generate", data, *ours, "--path", path, "--cpu"))) == [0, 1, 2, 3]
