"""An AR checkpoint of fairseq's own task made faster: every word and score stays, through the real commands."""

import pytest
from conftest import ROOT, hypotheses, preprocess, random_sentences, run, write_pairs
from in_process import here

AR = (
    "--arch",
    "transformer_tiny",
    "--encoder-ffn-embed-dim",
    "128",
    "--encoder-attention-heads",
    "4",
    "--decoder-attention-heads",
    "4",
    "--criterion",
    "cross_entropy",
)
RECIPE = (
    "--optimizer",
    "adam",
    "--lr",
    "2e-3",
    "--max-tokens",
    "1500",
    "--no-epoch-checkpoints",
    "--share-all-embeddings",
    "--cpu",
    "--user-dir",
    ROOT / "nar_plugins",
    "-s",
    "src",
    "-t",
    "tgt",
    "--disable-validation",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, an AR checkpoint trained under ``translation``, a frozen blockwise one that starts from it, and a cmlm."""
    folder = tmp_path_factory.mktemp("blockwise")
    for split, count, seed in (("train", 300, 1), ("test", 19, 3)):
        write_pairs(folder, [(s, s) for s in random_sentences(count, seed)], split)
    data = preprocess(folder, folder / "bin")
    here(
        "fairseq-train", data, *RECIPE, *AR, "--task", "translation", "--max-update", "40", "--save-dir", folder / "ar"
    )
    ar, frozen = folder / "ar" / "checkpoint_last.pt", folder / "frozen" / "checkpoint_last.pt"
    here(
        "fairseq-train",
        data,
        *RECIPE,
        "--task",
        "nar_translation",
        "--arch",
        "blockwise_tiny",
        "--freeze-base",
        "--criterion",
        "blockwise_loss",
        "--finetune-from-model",
        ar,
        "--max-update",
        "5",
        "--save-dir",
        frozen.parent,
    )
    here(
        "fairseq-train",
        data,
        *RECIPE,
        "--task",
        "nar_translation",
        "--arch",
        "cmlm_tiny",
        "--criterion",
        "nar_loss",
        "--max-update",
        "5",
        "--save-dir",
        folder / "cmlm",
    )
    return data, ar, frozen, folder / "cmlm" / "checkpoint_last.pt"


def generate(data, path, task, *flags, **kwargs):
    return run(
        "fairseq-generate",
        data,
        "--user-dir",
        "nar_plugins",
        "--task",
        task,
        "-s",
        "src",
        "-t",
        "tgt",
        "--cpu",
        "--path",
        path,
        "--batch-size",
        "8",
        "--max-len-b",
        "15",
        "--required-batch-size-multiple",
        "1",
        *flags,
        **kwargs,
    )


def test_the_words_are_those_of_the_ar_checkpoint(trained):
    data, ar, frozen, cmlm = trained
    wanted = hypotheses(generate(data, ar, "translation", "--beam", "1"))
    assert len(wanted) == 19
    heads = generate(data, frozen, "nar_translation", "--beam", "1", "--print-step", "--retain-iter-history")
    jacobi = generate(data, ar, "nar_translation", "--generator", "blockwise")
    drafted = generate(data, ar, "nar_translation", "--generator", "blockwise", "--drafter-path", cmlm)
    for output in (heads, jacobi, drafted):
        found = hypotheses(output)
        assert {n: line[0][1] for n, line in found.items()} == {n: line[0][1] for n, line in wanted.items()}
        assert all(abs(float(found[n][0][0]) - float(wanted[n][0][0])) < 1e-4 for n in wanted)
        assert output.count("mean accepted block") == 1 and "19 sentences" in output
    assert len(hypotheses(heads, "I")) == 19


def test_a_drafter_of_another_kind_is_refused(trained):
    data, ar, _, _ = trained
    said = generate(data, ar, "nar_translation", "--generator", "blockwise", "--drafter-path", ar, expect=1)
    assert f"{ar} holds a TransformerModel: a drafter is" in said
