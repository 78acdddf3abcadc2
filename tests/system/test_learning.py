"""A tiny ``cmlm`` must learn to copy and to reverse through the real commands; then everything a user reads must
agree.
"""

from pathlib import Path

import pytest
import sacrebleu
from conftest import ROOT, hypotheses, run
from in_process import here

TASK = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
TINY = (
    "--arch",
    "cmlm_tiny",
    "--criterion",
    "nar_loss",
    "--share-all-embeddings",
    "--optimizer",
    "adam",
    "--adam-betas",
    "(0.9, 0.98)",
    "--warmup-updates",
    100,
    "--clip-norm",
    1,
    "--max-tokens",
    1000,
    *("--encoder-attention-heads", 2, "--decoder-attention-heads", 2),
    "--seed",
    1,
    "--no-progress-bar",
)
UPDATES = {"copy": 400, "reverse": 750}
# One length: a model that copies perfectly is as sure of a copy without its last symbol, so a length beam would cast
# lots.
ONE_LENGTH = ("--length-beam", 1)
CHANGES = {"copy": lambda words: words, "reverse": lambda words: words[::-1]}


def falling(updates: int) -> tuple:
    """So many updates, with a rate that falls to nothing."""
    rate = ("--lr", "3e-3", "--lr-scheduler", "polynomial_decay", "--total-num-update", updates)
    return (*rate, "--max-update", updates)


@pytest.fixture(scope="module", params=["copy", "reverse"])
def trained(request, toys, tmp_path_factory):
    """(task, data, checkpoint, log) of a trained model, with BLEU in validation."""
    data, folder = toys(request.param), tmp_path_factory.mktemp(f"{request.param}_model")
    updates = UPDATES[request.param]
    log = run(
        "fairseq-train",
        data,
        *TASK,
        *TINY,
        *falling(updates),
        "--save-dir",
        folder,
        "--validate-interval-updates",
        updates,
        "--validate-interval",
        1000,
        "--save-interval",
        1000,
        "--no-epoch-checkpoints",
        "--eval-bleu",
        "--eval-bleu-args",
        '{"length_beam": 1}',
        "--best-checkpoint-metric",
        "bleu",
        "--maximize-best-checkpoint-metric",
        "--log-interval",
        100,
    )
    return request.param, data, folder / "checkpoint_best.pt", log


def generate(data, checkpoint, *flags) -> str:
    return here("fairseq-generate", data, *TASK, "--path", checkpoint, *flags)


def test_learns(trained):
    task, data, checkpoint, log = trained
    out = generate(data, checkpoint, "--batch-size", 64, *ONE_LENGTH)
    found = hypotheses(out)
    sources = hypotheses(out, "S")
    wanted = [" ".join(CHANGES[task](sources[i][0][0].split())) for i in range(200)]
    assert len(found) == 200
    bleu = sacrebleu.corpus_bleu([found[i][0][1] for i in range(200)], [wanted], tokenize="none").score
    assert bleu >= 95, bleu
    assert "| bleu " in log  # --eval-bleu decodes, and checkpoint_best.pt exists because of it


def test_twenty_lines_give_the_same_twenty_hypotheses_however_they_are_read(trained):
    task, data, checkpoint, _ = trained
    if task == "reverse":
        pytest.skip("one model is enough")
    raw = (Path(data).parent / "test.src").read_text().splitlines()[:20]
    folder = Path(data).parent / "twenty"
    folder.mkdir(exist_ok=True)
    for side in ("src", "tgt"):
        (folder / f"test.{side}").write_text("\n".join(raw) + "\n")
    here(
        "fairseq-preprocess",
        "-s",
        "src",
        "-t",
        "tgt",
        "--srcdict",
        Path(data) / "dict.src.txt",
        "--joined-dictionary",
        "--testpref",
        folder / "test",
        "--destdir",
        folder / "bin",
    )
    outs = [hypotheses(generate(folder / "bin", checkpoint, "--batch-size", size)) for size in (1, 7, 32)]
    typed = run(
        "fairseq-interactive",
        data,
        *TASK,
        "--path",
        checkpoint,
        "--batch-size",
        6,
        "--buffer-size",
        20,
        input="\n".join(raw) + "\n",
    )
    outs.append(hypotheses(typed))
    texts = [[out[i][0][1] for i in range(20)] for out in outs]
    assert all(sorted(out) == list(range(20)) for out in outs)
    assert texts[0] == texts[1] == texts[2] == texts[3]


def test_nbest_best_first_and_passes(trained):
    task, data, checkpoint, _ = trained
    if task == "copy":
        pytest.skip("one model is enough")
    out = generate(
        data, checkpoint, "--nbest", 3, "--length-beam", 5, "--print-step", "--iterations", 4, "--retain-iter-history"
    )
    for lines in hypotheses(out).values():
        scores = [float(fields[0]) for fields in lines]
        assert len(lines) == 3 and scores == sorted(scores, reverse=True)
    assert {fields[0] for lines in hypotheses(out, "I").values() for fields in lines} == {"4"}
    assert sum(line.startswith("E-") for line in out.splitlines()) == 200 * 3 * 4


def test_validate_command(trained):
    task, data, checkpoint, _ = trained
    if task == "copy":
        pytest.skip("one model is enough")
    out = run("fairseq-validate", data, *TASK, "--path", checkpoint, "--valid-subset", "valid,test", "--batch-size", 50)
    assert out.count("| words ") == 2 and out.count("| length ") == 2
