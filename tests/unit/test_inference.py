"""Lines that are too long: each gets an answer from fairseq-interactive and from the hub, and so do those around it."""

import copy
import logging
from argparse import Namespace

import pytest
import torch
from conftest import hypotheses
from fairseq import checkpoint_utils, tasks
from fairseq.hub_utils import GeneratorHubInterface
from saved import corpus, parsed, run, save, translations
from tiny import dictionary

from nar_plugins.data.inference import InferenceDataset
from nar_plugins.tasks.translation import NarTranslationConfig, NarTranslationTask

PLACES = 12  # of the models' sources, </s> counted
LINES = [
    "w1 w2 w3",
    " ".join(f"w{i % 7}" for i in range(20)),
    "",
    "w4 w5",
    " ".join(["w8"] * 12),
    " ".join(["w9"] * 11),
]
LONG = {1: 21, 4: 13}  # number of the line -> its tokens
FEW = ("--max-source-positions", str(PLACES), "--max-target-positions", "40")
MODELS = {
    "ar": ("transformer_tiny", *FEW),
    "heads": ("blockwise_tiny", *FEW),
    "bang": ("bang_tiny", *FEW),
    "cmlm": ("cmlm_tiny", *FEW),
    "nat": ("nat_tiny", *FEW),
    "uniform": ("nat_tiny", "--source-copy", "uniform", *FEW),
    "ctc": ("nat_tiny", "--ctc", *FEW),
    # a canvas of twice the source has no more than 24 places
    "ctc of learned positions": ("nat_tiny", "--ctc", "--decoder-learned-pos", "--max-target-positions", "24"),
    "dag": ("dag_tiny", *FEW[:2], "--max-target-positions", str(8 * PLACES)),
    "dag of few positions": ("dag_tiny", "--upsample", "2", "--max-target-positions", "24"),
    "more": ("nat_tiny", "--max-target-positions", "40"),
}
SYSTEMS = {
    "beam": ("ar", {"print_alignment": "hard"}),
    "blockwise": ("heads", {"beam": 1, "print_alignment": "hard"}),
    "drafted": ("ar", {"generator": "blockwise", "drafter_path": "cmlm"}),
    **{policy: ("bang", {"bang_policy": policy}) for policy in ("ar", "adaptive", "verify")},
    "mask_predict": ("cmlm", {"iterations": 2}),
    "fertilities": ("nat", {}),
    "lengths": ("uniform", {"nbest": 2, "length_beam": 2}),
    "ctc": ("ctc", {}),
    "ctc of learned positions": ("ctc of learned positions", {}),
    "dag of few positions": ("dag of few positions", {"dag_decode": "joint-viterbi", "length_beam": 2, "nbest": 2}),
    "rescored": ("more", {"rescorer": "ar"}),
}
POSITIONS = "more than the 12 source positions: its translation is empty; cut it with --truncate-source"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("inference")
    data = corpus(root / "text", [("w1 w2 w3", "w1"), (LINES[1], "w2 w3"), ("w4", "w5 " * 12)])
    return Namespace(
        root=root, data=data, models={name: save(root / f"{name}.pt", *flags) for name, flags in MODELS.items()}
    )


def typed(made, system: str, lines=LINES, **more) -> dict:
    """What fairseq-interactive answers: number of the line -> its hypotheses' texts."""
    model, settings = SYSTEMS[system]
    settings = {
        "buffer_size": 100,
        "batch_size": 4,
        **({} if "ctc" in model else {"max_len_b": 15}),
        **settings,
        **more,
    }
    for name in ("drafter_path", "rescorer"):
        if name in settings:
            settings[name] = str(made.models[settings[name]])
    file = made.root / "lines"
    file.write_text("".join(f"{line}\n" for line in lines))
    return translations("fairseq-interactive", made.data, made.models[model], input=str(file), **settings)


def warnings(caplog) -> list:
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == "nar_plugins.data.inference" and r.levelno == logging.WARNING
    ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_line_gets_an_answer(made, system, caplog):
    short = [line for i, line in enumerate(LINES) if i not in LONG]
    wanted = iter(list(typed(made, system, short).values()))
    wanted = {i: [""] if i in LONG else next(wanted) for i in range(len(LINES))}
    caplog.clear()
    assert typed(made, system) == wanted
    assert warnings(caplog) == [f"line {i + 1} (H-{i}) has {size} tokens, {POSITIONS}" for i, size in LONG.items()]


@pytest.mark.parametrize("system", SYSTEMS)
def test_lines_are_cut_when_that_is_asked(made, system, caplog):
    wanted = typed(made, system, [" ".join(line.split()[: PLACES - 1]) for line in LINES])
    assert all(text != [""] for i, text in wanted.items() if i in LONG)
    caplog.clear()
    assert typed(made, system, truncate_source=True) == wanted
    assert warnings(caplog) == [f"line {i + 1} (H-{i}) has {size} tokens: cut to 12" for i, size in LONG.items()]


@pytest.mark.parametrize("buffer_size, batch_size", [(1, 1), (2, 2), (4, 1)])
def test_lines_are_counted_over_the_whole_input(made, buffer_size, batch_size, caplog):
    found = typed(made, "mask_predict", buffer_size=buffer_size, batch_size=batch_size)
    assert sorted(found) == list(range(len(LINES))) and {i for i, text in found.items() if text == [""]} == {1, 2, 4}
    assert [said.split(" has ")[0] for said in warnings(caplog)] == ["line 2 (H-1)", "line 5 (H-4)"]


def test_the_source_of_a_line_that_is_too_long_is_printed(made):
    typed(made, "mask_predict")
    lines = str(made.root / "lines")
    out = run("fairseq-interactive", made.data, made.models["cmlm"], input=lines, buffer_size=9, batch_size=9)
    assert {i: fields[0][0] for i, fields in hypotheses(out, "S").items()} == dict(enumerate(LINES))


def test_padding_is_a_word_of_an_autoregressive_source_beside_a_line_that_is_too_long(made):
    lines = [f"<pad> <pad> <pad> <pad> w{i} w{i + 5}" for i in range(8)]
    for system in ("beam", "drafted"):
        alone = typed(made, system, lines, batch_size=9)
        assert typed(made, system, [*lines, LINES[1]], batch_size=9) == {**alone, 8: [""]}
        assert len({text for text, *_ in alone.values()}) > 1


def test_nothing_but_lines_that_are_too_long(made):
    assert typed(made, "beam", [LINES[1]] * 3) == {i: [""] for i in range(3)}


def test_a_limit_of_the_task_and_one_of_the_batch(made, caplog):
    """A task's positions may be fewer than a model's; a line that no batch has room for is answered likewise."""
    assert {i for i, text in typed(made, "beam", max_source_positions=4).items() if text == [""]} == {1, 4, 5}
    caplog.clear()
    found = typed(made, "beam", batch_size=None, max_tokens=8)
    assert {i for i, text in found.items() if text == [""]} == {1, 4, 5} and sorted(found) == list(range(len(LINES)))
    hint = "its translation is empty; raise it, or cut the line with --truncate-source"
    assert warnings(caplog)[2] == f"line 6 (H-5) has 12 tokens, more than --max-tokens 8: {hint}"
    cut = typed(made, "beam", [" ".join(line.split()[:7]) for line in LINES], batch_size=None, max_tokens=8)
    assert typed(made, "beam", batch_size=None, max_tokens=8, truncate_source=True) == cut


def test_fairseqs_flag_skips_lines_as_it_says(made):
    found = typed(made, "beam", skip_invalid_size_inputs_valid_test=True)
    assert sorted(found) == [i for i in range(len(LINES)) if i not in LONG]
    one_by_one = typed(made, "beam", skip_invalid_size_inputs_valid_test=True, buffer_size=1, batch_size=1)
    assert sorted(one_by_one) == sorted(found)


def test_constraints_stay_with_their_lines(made):
    lines = ["w1 w2\tw9", LINES[1] + "\tw8", "w4 w5\tw6\tw7"]
    found = typed(made, "beam", lines, constraints="ordered")
    assert "w9" in found[0][0].split() and found[1] == [""] and {"w6", "w7"} <= set(found[2][0].split())


@pytest.mark.parametrize("name", ["ar", "heads", "bang", "cmlm", "nat", "ctc", "dag"])
def test_the_hub_answers_every_sentence(made, name, caplog):
    config = copy.deepcopy(parsed("fairseq-generate"))
    config.task.data = str(made.data)
    task = tasks.setup_task(config.task)
    models, saved = checkpoint_utils.load_model_ensemble([str(made.models[name])], task=task)
    hub = GeneratorHubInterface(saved, task, models)
    short = [line for i, line in enumerate(LINES) if i not in LONG]
    bound = {} if name in ("ctc", "dag") else {"max_len_b": 15}
    wanted = iter(hub.translate(short, **bound))
    wanted = ["" if i in LONG else next(wanted) for i in range(len(LINES))]
    assert hub.translate(LINES, **bound) == wanted
    caplog.clear()
    assert hub.translate(LINES[4], **bound) == "" and warnings(caplog) == [f"line 1 (H-0) has 13 tokens, {POSITIONS}"]


def test_lines_that_were_answered_are_not_kept():
    """fairseq keeps every data set that it makes batches of: each of fairseq-interactive's buffers."""
    words = dictionary(20)
    task = NarTranslationTask(NarTranslationConfig(source_lang="en", target_lang="de"), words, words)

    def batches(dataset):
        return task.get_batch_iterator(dataset, max_tokens=100, max_positions=(100, 100))

    lines = [task.build_dataset_for_inference([torch.tensor([5, words.eos()])], [2]) for _ in range(3)]
    assert len({batches(dataset) for dataset in lines}) == 3 and not task.dataset_to_epoch_iter
    task.datasets["valid"] = lines[0]  # a split, which is asked for again
    assert batches(lines[0]) is batches(lines[0]) and list(task.dataset_to_epoch_iter) == lines[:1]


def test_fairseq_generate_keeps_its_error(made):
    with pytest.raises(Exception, match=r"^Size of sample #1 is invalid .* skip this example with --skip-invalid"):
        translations("fairseq-generate", made.data, made.models["cmlm"])
    skipped = translations("fairseq-generate", made.data, made.models["cmlm"], skip_invalid_size_inputs_valid_test=True)
    assert sorted(skipped) == [0, 2]


def test_fairseq_generate_names_the_sentence_that_no_batch_has_room_for(made):
    said = "^{} sentences are longer than --max-tokens 8, the longest is number {} tokens: raise --max-tokens"
    with pytest.raises(ValueError, match=said.format("2 of 3", "1 of 21")):
        translations("fairseq-generate", made.data, made.models["more"], max_tokens=8)
    skip = {"skip_invalid_size_inputs_valid_test": True}
    with pytest.raises(ValueError, match=said.format("1 of 2", "2 of 13")):
        translations("fairseq-generate", made.data, made.models["cmlm"], max_tokens=8, **skip)


def test_a_row_of_a_batch_that_is_too_long_has_the_length_0_and_its_tokens():
    words = dictionary(20)
    sources = [words.encode_line(line, add_if_not_exist=False, append_eos=True).long() for line in LINES]
    numbers = torch.arange(6).view(6, 1)
    dataset = InferenceDataset(sources, [len(s) for s in sources], words, left_pad_source=False, constraints=numbers)
    dataset.bound(12, None, cut=False, skip=False)
    batch = dataset.collater([dataset[i] for i in range(6)])
    rows = dict(zip(batch["id"].tolist(), range(6)))
    lengths = batch["net_input"]["src_lengths"]
    assert [int(lengths[rows[i]]) for i in range(6)] == [0 if i in LONG else len(s) for i, s in enumerate(sources)]
    assert all(batch["net_input"]["src_tokens"][rows[i], : len(s)].equal(s) for i, s in enumerate(sources))
    assert dataset.src_sizes.max() == 12 and [int(batch["constraints"][rows[i]]) for i in range(6)] == list(range(6))
    assert dataset.collater([]) == {}
