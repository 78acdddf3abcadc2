"""Tiny ``nat`` models must learn through the real commands: fertilities, and latent alignments with glancing.

On "repeat" (w0 never, w1 once, w2 twice ...) the fertilities are the whole task.
"""

import pytest
import sacrebleu
import torch
from conftest import hypotheses, repeated, repetitions, run
from fairseq import checkpoint_utils, tasks
from in_process import here
from test_learning import TASK, TINY, falling

import nar_plugins  # noqa: F401

QUIET = ("--validate-interval", 1000, "--save-interval", 1000, "--no-epoch-checkpoints", "--log-interval", 100)
NAT = (
    *("nat_tiny" if flag == "cmlm_tiny" else flag for flag in TINY),
    "--lr",
    "2e-3",
    "--lr-scheduler",
    "inverse_sqrt",
)


def train(data, folder, updates, *flags):
    run("fairseq-train", data, *TASK, *NAT, *QUIET, *falling(updates), "--save-dir", folder, *flags)
    return folder / "checkpoint_last.pt"


def generate(data, checkpoint, *flags, command=here) -> str:
    """``command=run`` where the log, too, is asked for."""
    return command("fairseq-generate", data, *TASK, "--path", checkpoint, "--batch-size", 64, *flags)


def bleu(out: str, change) -> float:
    """Against what the sources should have become."""
    found, sources = hypotheses(out), hypotheses(out, "S")
    assert len(found) == 200
    wanted = [change(sources[i][0][0]) for i in range(200)]
    return sacrebleu.corpus_bleu([found[i][0][1] for i in range(200)], [wanted], tokenize="none").score


@pytest.fixture(scope="module")
def fertile(toys, tmp_path_factory):
    """(data, checkpoint) of a model that learnt "repeat" from the aligner's fertilities."""
    data = toys("repeat")
    run("nar-align", data)
    return data, train(data, tmp_path_factory.mktemp("fertile"), 400)


@pytest.fixture(scope="module")
def teacher(toys, tmp_path_factory):
    """A stock transformer that has seen five updates: it need not be good to order candidates."""
    folder = tmp_path_factory.mktemp("teacher")
    here(
        "fairseq-train",
        toys("repeat"),
        "--task",
        "translation",
        "-s",
        "src",
        "-t",
        "tgt",
        "--cpu",
        "--arch",
        "transformer_tiny",
        "--criterion",
        "cross_entropy",
        "--share-all-embeddings",
        "--optimizer",
        "adam",
        "--lr",
        "1e-3",
        "--max-tokens",
        3000,
        "--max-update",
        5,
        "--save-dir",
        folder,
        "--no-epoch-checkpoints",
        "--no-progress-bar",
    )
    return folder / "checkpoint_last.pt"


def test_fertilities_learn_the_rule(fertile):
    """A uniform copy reached 62.6 BLEU in 600 larger updates when it was measured: the fertilities do it."""
    data, checkpoint = fertile
    score = bleu(generate(data, checkpoint), repeated)
    assert score >= 97, score

    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    task = tasks.setup_task(task.cfg)
    task.load_dataset("test", task_cfg=task.cfg)
    right = symbols = 0
    for i in range(len(task.dataset("test"))):
        source = task.dataset("test")[i]["source"]
        with torch.no_grad():
            predicted = (
                model.eval()
                .fertility_lprobs(model.encode(source.unsqueeze(0), torch.tensor([len(source)])))[0]
                .argmax(-1)
            )
        words = task.source_dictionary.string(source).split()
        right += sum(int(f) == repetitions(word) for f, word in zip(predicted, words))
        symbols += len(words)
    assert right / symbols >= 0.98, right / symbols


def test_one_pass_reads_the_same_from_everywhere(fertile):
    data, checkpoint = fertile
    raw = (data.parent / "test.src").read_text().splitlines()
    outs = [hypotheses(generate(data, checkpoint, "--batch-size", size)) for size in (1, 32)]
    typed = run(
        "fairseq-interactive",
        data,
        *TASK,
        "--path",
        checkpoint,
        "--batch-size",
        7,
        "--buffer-size",
        200,
        input="\n".join(raw) + "\n",
    )
    first, second, third = ([out[i][0][1] for i in range(200)] for out in (*outs, hypotheses(typed)))
    assert first == second == third


def test_noisy_parallel_decoding_and_fairseqs_own_flag_say_the_same(fertile, teacher):
    data, checkpoint = fertile
    noisy = ("--generator", "noisy_parallel", "--fertility-samples", 6)
    out = generate(data, checkpoint, *noisy, "--rescorer", teacher, command=run)
    same = generate(data, f"{checkpoint}:{teacher}", *noisy, "--iter-decode-with-external-reranker")
    assert hypotheses(out) == hypotheses(same)
    assert "noisy_parallel: 200 sentences, 1200 candidates; equal fertilities" in out
    interactive = run(
        "fairseq-interactive",
        data,
        *TASK,
        "--path",
        checkpoint,
        *noisy,
        "--rescorer",
        teacher,
        "--buffer-size",
        200,
        input=(data.parent / "test.src").read_text(),
    )
    assert {i: h[0][1] for i, h in hypotheses(interactive).items()} == {i: h[0][1] for i, h in hypotheses(out).items()}


def test_ctc_with_glancing_learns_to_reverse(toys, tmp_path):
    data = toys("reverse")
    checkpoint = train(data, tmp_path, 400, "--ctc", "--upsample", 2, "--glancing", "0.5:0.3@400", "--max-tokens", 800)
    score = bleu(generate(data, checkpoint), lambda s: " ".join(reversed(s.split())))
    assert score >= 75, score
    assert bleu(generate(data, checkpoint, "--ctc-beam", 5), lambda s: " ".join(reversed(s.split()))) >= score - 1


def test_a_teacher_finetunes_and_distils_word_by_word(fertile, teacher, tmp_path):
    data, checkpoint = fertile
    log = run(
        "fairseq-train",
        data,
        *TASK,
        *NAT,
        *QUIET,
        "--max-update",
        3,
        "--save-dir",
        tmp_path / "ft",
        "--log-interval",
        1,
        "--teacher",
        teacher,
        "--finetune-weight",
        0.25,
        "--finetune-from-model",
        checkpoint,
    )
    assert "backprop=" in log and "reinforce=" in log
    state = torch.load(tmp_path / "ft/checkpoint_last.pt", weights_only=True)
    assert state["model"].keys() == torch.load(checkpoint, weights_only=True)["model"].keys()
    assert not state.get("criterion")
    here(
        "fairseq-train",
        data,
        *TASK,
        *NAT,
        *QUIET,
        "--max-update",
        3,
        "--save-dir",
        tmp_path / "soft",
        "--teacher",
        teacher,
        "--teacher-temperature",
        2,
    )
    generate(data, tmp_path / "ft/checkpoint_last.pt")
