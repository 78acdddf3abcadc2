"""Bad input to fairseq's commands: a non-zero exit, a last line that names the thing, and nothing lost.

A dozen cases run as processes of their own, the others call the commands' ``cli_main`` here.
"""

import functools
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import forked
import pytest
import torch
from conftest import ROOT, hypotheses, random_sentences, write_pairs
from in_process import MAINS, here, refusal

from nar_plugins.cli import align

USER_DIR = ROOT / "nar_plugins"
TASK = ("--user-dir", USER_DIR, "--task", "nar_translation", "--cpu")
TRAIN = (
    *TASK,
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--max-tokens",
    "300",
    "--max-update",
    "2",
    "--num-workers",
    "0",
    "--no-progress-bar",
    "--share-all-embeddings",
    "--max-source-positions",
    "20",
    "--max-target-positions",
    "20",
)
CMLM = ("--arch", "cmlm_tiny", "--criterion", "nar_loss")
AR = ("--arch", "transformer_tiny", "--criterion", "cross_entropy")


def process(command: str, *arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [str(forked.program(command)), *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, text=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment)


def last_line(command: str, *arguments) -> str:
    """The last line of the errors of a real process that must fail."""
    done = process(command, *arguments)
    assert done.returncode != 0, done.stdout[-2000:]
    return done.stderr.strip().splitlines()[-1]


@functools.lru_cache(maxsize=None)
def hashed(path: Path, inode: int, size: int, changed: int) -> str:
    """A file's hash. The time of its last change (ctime), in nanoseconds, cannot be set back."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict:
    """Every file below, and its hash: to see that nothing is lost."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".log"]
    states = {p: p.stat() for p in files}
    return {p: hashed(p, state.st_ino, state.st_size, state.st_ctime_ns) for p, state in states.items()}


def binarise(folder: Path, pairs: dict, *arguments) -> Path:
    """Splits, each a list of pairs -> folder/bin."""
    for split, lines in pairs.items():
        write_pairs(folder, lines, split)
    prefixes = [f"--{split}pref={folder / split}" for split in pairs]
    sides = ("-s", "src", "-t", "tgt", "--joined-dictionary")
    here("fairseq-preprocess", *sides, *prefixes, "--destdir", folder / "bin", *arguments)
    return folder / "bin"


def pairs(count: int, seed: int, rename=lambda s: s) -> list:
    return [(rename(s), rename(s)) for s in random_sentences(count, seed)]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Namespace:
    """A corpus, and a checkpoint folder of a cmlm and of an AR transformer, trained for two updates each."""
    root = tmp_path_factory.mktemp("bad_input")
    data = binarise(root / "text", {"train": pairs(60, 1), "valid": pairs(9, 2), "test": pairs(11, 3)})
    for name, arch in (("cmlm", CMLM), ("ar", AR)):
        here("fairseq-train", data, *TRAIN, *arch, "--save-dir", root / name)
    last = "checkpoint_last.pt"
    return Namespace(root=root, data=data, cmlm=root / "cmlm" / last, ar=root / "ar" / last)


@pytest.fixture
def data(made, tmp_path) -> Path:
    """A copy of the binarised corpus, to be spoiled."""
    return Path(shutil.copytree(made.data, tmp_path / "bin"))


@pytest.fixture(autouse=True)
def nothing_is_lost(request):
    """No test may change the corpus or the checkpoints that all of them use."""
    if "made" not in request.fixturenames:
        yield
        return
    root = request.getfixturevalue("made").root
    before = contents(root)
    yield
    assert contents(root) == before


def generate(made, *arguments, data=None, path=None) -> tuple:
    return ("fairseq-generate", data or made.data, *TASK, "--path", path or made.cmlm, *arguments)


def interactive(made, text: Path, *arguments, path=None) -> tuple:
    sides = ("-s", "src", "-t", "tgt")
    return ("fairseq-interactive", made.data, *TASK, "--path", path or made.cmlm, *sides, "--input", text, *arguments)


def train(data, folder, *arguments, arch=CMLM) -> tuple:
    return ("fairseq-train", data, *TRAIN, *arch, "--save-dir", folder, *arguments)


# -- what good input gives, so that the refusals below mean something --------------------------------------------------


def test_the_same_commands_with_good_input_keep_every_sentence(made):
    for path in (made.cmlm, made.ar):
        assert sorted(hypotheses(here(*generate(made, path=path)))) == list(range(11))


def test_a_blank_line_gives_an_empty_translation(made, tmp_path):
    text = tmp_path / "text"
    text.write_text("w1 w2 w3\n\n   \nw4\n", encoding="utf-8")
    done = process(*interactive(made, text))
    assert done.returncode == 0, done.stderr
    found = hypotheses(done.stdout)
    assert sorted(found) == [0, 1, 2, 3]
    assert [float(found[i][0][0]) for i in (1, 2)] == [0, 0] and [found[i][0][1] for i in (1, 2)] == ["", ""]
    assert hypotheses(done.stdout, "D")[1][0][1] == ""


def test_a_blank_line_in_a_batch_and_at_its_end_gives_an_empty_translation_too(made, tmp_path):
    text = tmp_path / "text"
    text.write_text("\nw1 w2 w3\nw4\n\n", encoding="utf-8")
    found = hypotheses(here(*interactive(made, text, "--buffer-size", "4", "--batch-size", "4", "--nbest", "3")))
    assert sorted(found) == [0, 1, 2, 3]
    assert [found[i][0][1] for i in (0, 3)] == ["", ""] and len(found[0]) == 1
    assert 1 < len({text for _, text in found[1]}) == len(found[1]) <= 3  # three canvases, those that read alike once


def test_a_blank_line_does_not_crash_an_ar_checkpoint(made, tmp_path):
    text = tmp_path / "text"
    text.write_text("\nw1\n", encoding="utf-8")
    assert sorted(hypotheses(here(*interactive(made, text, path=made.ar)))) == [0, 1]


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language, side", [("src", "source"), ("tgt", "target")])
@pytest.mark.parametrize("kind", ["idx", "bin"])
def test_training_on_data_without_one_side_is_refused(data, tmp_path, language, side, kind):
    (data / f"train.src-tgt.{language}.{kind}").unlink()
    said = refusal(*train(data, tmp_path / "save"))
    assert said.startswith(f"train: no {side} file") and f"train.src-tgt.{language}.{kind}" in said


def test_training_on_data_without_a_target_exits_with_one_line(data, tmp_path):
    for kind in ("idx", "bin"):
        (data / f"train.src-tgt.tgt.{kind}").unlink()
    line = last_line(*train(data, tmp_path / "save"))
    assert line.startswith("ValueError: train: no target file") and "train.src-tgt.tgt.idx" in line


def test_generating_from_data_without_a_target_names_the_file_and_the_other_command(made, data):
    (data / "test.src-tgt.tgt.idx").unlink()
    said = refusal(*generate(made, data=data))
    assert said.startswith("test: no target file") and "fairseq-interactive" in said


def test_an_empty_split_is_refused(tmp_path, made):
    empty = {"train": pairs(20, 1), "valid": [], "test": []}
    data = binarise(tmp_path / "text", empty, "--srcdict", made.data / "dict.src.txt")
    said = refusal(*generate(made, data=data))
    assert "test" in said and "empty" in said
    assert "valid" in refusal(*train(data, tmp_path / "save"))


def test_an_empty_training_split_is_refused(tmp_path, made):
    data = binarise(tmp_path / "text", {"train": [], "valid": pairs(9, 2)}, "--srcdict", made.data / "dict.src.txt")
    said = refusal(*train(data, tmp_path / "save"))
    assert "train" in said and "empty" in said


def test_sides_of_different_length_are_refused(data, tmp_path):
    for kind in ("idx", "bin"):
        shutil.copy(data / f"valid.src-tgt.tgt.{kind}", data / f"train.src-tgt.tgt.{kind}")
    assert refusal(*train(data, tmp_path / "save")) == "train: 60 src but 9 tgt sentences: they are no pairs"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b[:20],
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b"nonsense\n" * 20,
        lambda b: b[:9] + b"\xff" * 16 + b[25:],
    ],
)
def test_a_corrupt_index_is_refused(data, tmp_path, spoil):
    index = data / "train.src-tgt.src.idx"
    index.write_bytes(spoil(index.read_bytes()))
    said = refusal(*train(data, tmp_path / "save"))
    assert "train.src-tgt.src" in said and "corrupt" in said


def test_a_corrupt_index_exits_with_one_line(made, data):
    index = data / "test.src-tgt.tgt.idx"
    index.write_bytes(index.read_bytes()[:40])
    line = last_line(*generate(made, data=data))
    assert line.startswith("ValueError: ") and "test.src-tgt.tgt" in line and "corrupt" in line


def test_data_cut_short_under_a_whole_index_is_refused(data, tmp_path):
    binary = data / "train.src-tgt.src.bin"
    binary.write_bytes(binary.read_bytes()[: binary.stat().st_size // 2])
    assert "corrupt" in refusal(*train(data, tmp_path / "save"))


def test_a_folder_that_is_not_there_or_holds_no_data_is_named(tmp_path):
    assert f"no data folder '{tmp_path / 'nothing'}'" in refusal(*train(tmp_path / "nothing", tmp_path / "save"))
    (tmp_path / "empty").mkdir()
    assert "--source-lang" in refusal(*train(tmp_path / "empty", tmp_path / "save"))


def test_a_missing_dictionary_is_named(data, tmp_path):
    (data / "dict.tgt.txt").unlink()
    assert "no dictionary" in refusal(*train(data, tmp_path / "save"))


def test_the_same_language_twice_is_refused(made, tmp_path):
    said = refusal(*train(made.data, tmp_path / "save", "-s", "src", "-t", "src"))
    assert "both 'src'" in said


def test_a_split_of_unknown_words_is_refused(made, tmp_path):
    foreign = binarise(
        tmp_path / "text",
        {"train": pairs(20, 1, lambda s: s.replace("w", "v")), "valid": pairs(9, 2)},
        "--srcdict",
        made.data / "dict.src.txt",
    )
    said = refusal(*train(foreign, tmp_path / "save"))
    assert said.startswith("train (src): 100% of the tokens are <unk>")


def test_data_binarised_with_a_larger_dictionary_is_refused(made, data, tmp_path):
    lines = (data / "dict.src.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for language in ("src", "tgt"):
        (data / f"dict.{language}.txt").write_text("".join(lines[:20]), encoding="utf-8")
    said = refusal(*train(data, tmp_path / "save"))
    assert "has token" in said and "another dictionary" in said


# -- sentences longer than the positions -------------------------------------------------------------------------------

LONG = " ".join(["w1"] * 25)  # the models above have 20 positions


@pytest.fixture(scope="session")
def long_data(made, tmp_path_factory):
    """Each split has one pair that is too long, the second."""
    spoilt = {}
    for split, seed in (("train", 1), ("valid", 2), ("test", 3)):
        spoilt[split] = pairs(12, seed)
        spoilt[split][1] = (LONG, LONG)
    return binarise(tmp_path_factory.mktemp("long") / "text", spoilt, "--srcdict", made.data / "dict.src.txt")


def test_a_sentence_longer_than_the_positions_is_an_error_in_generation_unless_skipped(made, long_data):
    said = refusal(*generate(made, data=long_data))
    assert "#1 " in said and "26" in said and "--skip-invalid-size-inputs-valid-test" in said
    found = hypotheses(here(*generate(made, "--skip-invalid-size-inputs-valid-test", data=long_data)))
    assert sorted(found) == [0, *range(2, 12)]


def test_a_line_longer_than_the_positions_is_answered_with_nothing_and_a_warning(made, tmp_path):
    (tmp_path / "text").write_text(f"w1 w2\n{LONG}\nw3\n", encoding="utf-8")
    done = process(*interactive(made, tmp_path / "text"))
    found = hypotheses(done.stdout)
    assert done.returncode == 0 and sorted(found) == [0, 1, 2] and found[1][0][1] == ""
    assert "line 2 (H-1) has 26 tokens, more than the 20 source positions" in done.stdout + done.stderr


def test_a_sentence_longer_than_the_positions_is_skipped_and_counted_in_training(made, long_data, tmp_path, caplog):
    skip = "--skip-invalid-size-inputs-valid-test"
    with caplog.at_level("WARNING"):
        here(*train(long_data, tmp_path / "save", skip))
    assert "1 samples have invalid sizes and will be skipped" in caplog.text
    assert (tmp_path / "save" / "checkpoint_last.pt").exists()
    said = refusal(*train(long_data, tmp_path / "other"))  # the validation's sentence, without the flag
    assert "#1 " in said and skip in said


# -- options of decoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--iterations=0"], "--iterations 0"),
        (["--iterations=-3"], "--iterations -3"),
        (["--length-beam=0"], "--length-beam 0"),
        (["--beam=3"], "--beam 3"),
        (["--prefix-size=2"], "--prefix-size"),
        (["--constraints"], "--constraints"),
        (["--sampling", "--beam=1"], "--sampling"),
        (["--unkpen=1"], "--unkpen"),
        (["--temperature=2"], "--temperature"),
        (["--replace-unk"], "--replace-unk"),
        (["--no-repeat-ngram-size=2"], "--no-repeat-ngram-size"),
        (["--diverse-beam-groups=2"], "--diverse-beam-groups"),
        (["--print-alignment"], "--print-alignment"),
        (["--iter-decode-max-iter=9"], "--iterations counts all passes"),
        (["--score-reference"], "--score-reference"),
        (["--generator=beam"], "--generator beam cannot decode a CmlmModel"),
        (["--generator=beem"], "--generator beem does not exist"),
        (["--match-source-len"], "--match-source-len"),
        (["--lm-weight=0.5"], "--lm-weight"),
    ],
)
def test_an_option_that_makes_no_sense_for_mask_predict_is_refused(made, flags, said):
    assert said in refusal(*generate(made, *flags))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--generator=mask_predict"], "--generator mask_predict cannot decode a TransformerModel"),
        (["--iterations=4"], "--iterations is no option of --generator beam"),
        (["--length-beam=3"], "--length-beam is no option of --generator beam"),
    ],
)
def test_an_option_that_makes_no_sense_for_an_ar_checkpoint_is_refused(made, flags, said):
    assert said in refusal(*generate(made, *flags, path=made.ar))


@pytest.mark.parametrize("flag", ["--schedule=quadratic", "--dedup=letter", "--decode-dtype=int4", "--iterations=many"])
def test_a_value_that_an_option_does_not_have_is_refused_by_the_parser(made, flag, capfd):
    command, *arguments = generate(made, flag)
    with pytest.raises(SystemExit) as stop, mock.patch.object(sys, "argv", [command, *map(str, arguments)]):
        MAINS[command].cli_main()
    assert stop.value.code == 2
    assert f"error: argument {flag.split('=')[0]}: invalid" in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_sampled_or_beamed_mask_predict_exits_with_one_line(made):
    line = last_line(*generate(made, "--sampling", "--beam", "1"))
    assert line == "ValueError: --sampling cannot be honoured by --generator mask_predict: leave it out"


def test_no_iterations_exit_with_one_line(made):
    assert last_line(*generate(made, "--iterations", "0")).startswith("ValueError: --iterations 0: at least one pass")


def test_bad_validation_arguments_are_refused(made, tmp_path):
    said = refusal(*train(made.data, tmp_path / "save", "--eval-bleu", "--eval-bleu-args", '{"iteration": 4}'))
    assert "--eval-bleu-args: no generator has an option 'iteration'" in said


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_truncated_checkpoint_exits_with_one_line_naming_the_newest_whole_one(made, tmp_path):
    folder = Path(shutil.copytree(made.cmlm.parent, tmp_path / "save"))
    last = folder / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    line = last_line(*generate(made, path=last))
    assert "CheckpointError" in line and "truncated" in line
    newest = max((p for p in folder.glob("*.pt") if p != last), key=os.path.getmtime)
    assert str(newest) in line


def test_training_does_not_start_over_a_truncated_checkpoint(made, tmp_path):
    folder = Path(shutil.copytree(made.cmlm.parent, tmp_path / "save"))
    last = folder / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    before = contents(folder)
    line = last_line(*train(made.data, folder, "--max-update", "4"))
    assert "checkpoint_last.pt is truncated" in line and "the newest whole checkpoint is" in line
    assert contents(folder) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_text("this is no checkpoint\n"),
        lambda p: p.write_bytes(b""),
        lambda p: torch.save([1], p),
        lambda p: torch.save({"state_dict": {}}, p),
        lambda p: p.write_bytes(pickle.dumps({"model": {}, "args": None})),
    ],
)
def test_a_foreign_checkpoint_file_is_refused(made, tmp_path, write):
    path = tmp_path / "foreign.pt"
    write(path)
    said = refusal(*generate(made, path=path))
    assert str(path) in said and ("not a PyTorch checkpoint" in said or "no fairseq checkpoint" in said)


def test_a_checkpoint_that_is_not_there_is_named(made, tmp_path):
    assert "nothing.pt" in refusal(*generate(made, path=tmp_path / "nothing.pt"))


def test_models_of_two_kinds_are_no_ensemble(made):
    said = refusal(*generate(made, path=f"{made.cmlm}:{made.ar}"))
    assert said.startswith("--generator mask_predict cannot decode a TransformerModel")


@pytest.fixture(scope="session")
def other_data(tmp_path_factory):
    """A corpus of 40 other words: dictionaries of the same size, and one with fewer words."""
    root = tmp_path_factory.mktemp("other")
    same = {split: pairs(60, 1, lambda s: s.replace("w", "v")) for split in ("train", "test")}
    few = {split: pairs(60, 1, lambda s: s.replace("w3", "w1")) for split in ("train", "test")}
    return Namespace(same=binarise(root / "same", same), few=binarise(root / "few", few))


@pytest.mark.parametrize("which", ["same", "few"])
@pytest.mark.parametrize("model", ["cmlm", "ar"])
def test_data_of_another_dictionary_than_the_checkpoints_is_refused(made, other_data, which, model):
    said = refusal(*generate(made, data=getattr(other_data, which), path=getattr(made, model)))
    assert "dictionary" in said and "is not the checkpoint's" in said and "the checkpoint has 'w" in said


def test_data_of_another_dictionary_exits_with_one_line(made, other_data):
    line = last_line(*generate(made, data=other_data.same))
    assert line.startswith("ValueError: the source dictionary of") and "the checkpoint has 'w" in line


def test_training_does_not_continue_with_another_dictionary(made, data, other_data, tmp_path):
    folder = Path(shutil.copytree(made.cmlm.parent, tmp_path / "save"))
    before = contents(folder)
    for language in ("src", "tgt"):
        shutil.copy(other_data.same / f"dict.{language}.txt", data)
    said = refusal(*train(data, folder, "--max-update", "4"))
    assert "dictionary" in said and "is not the checkpoint's" in said
    assert contents(folder) == before


def test_a_plain_ar_checkpoint_with_another_dictionary_size_is_refused(made, other_data, tmp_path):
    state = torch.load(made.ar, weights_only=True)
    state["task_state"] = {}  # as of fairseq's own task: no symbols to compare
    torch.save(state, tmp_path / "plain.pt")
    said = refusal(*generate(made, data=other_data.few, path=tmp_path / "plain.pt"))
    assert "dictionary" in said and "embed_tokens" in said


def test_training_does_not_continue_from_a_checkpoint_of_another_model(made, tmp_path):
    folder = Path(shutil.copytree(made.ar.parent, tmp_path / "save"))
    before = contents(folder)
    said = refusal(*train(made.data, folder, "--max-update", "4"))
    assert "checkpoint_last.pt" in said and "architectures match" in said
    assert contents(folder) == before


def test_a_stock_non_autoregressive_checkpoint_is_refused_by_name(made, tmp_path):
    arch = (
        "--arch",
        "cmlm_transformer",
        "--criterion",
        "nat_loss",
        "--encoder-layers",
        "1",
        "--decoder-layers",
        "1",
        "--encoder-embed-dim",
        "64",
        "--decoder-embed-dim",
        "64",
    )
    stock = ("--user-dir", USER_DIR, "--task", "translation_lev", "--noise", "random_mask", "--cpu")
    here("fairseq-train", made.data, *TRAIN, *stock, *arch, "--save-dir", tmp_path / "stock")
    said = refusal(*generate(made, path=tmp_path / "stock" / "checkpoint_last.pt"))
    assert "CMLMNATransformerModel" in said


# -- nothing already written is lost -----------------------------------------------------------------------------------


def test_results_of_an_earlier_run_survive_a_refused_one_and_give_way_to_a_good_one(made, tmp_path):
    here(*generate(made, "--results-path", tmp_path))
    before = contents(tmp_path)
    (results,) = before
    for flags in (["--iterations=0"], ["--sampling", "--beam=1"]):
        refusal(*generate(made, "--results-path", tmp_path, *flags))
        assert contents(tmp_path) == before
    here(*generate(made, "--results-path", tmp_path, "--print-step", "--iterations=2"))
    assert list(contents(tmp_path)) == [results]
    assert {steps for ((steps,),) in hypotheses(results.read_text(encoding="utf-8"), "I").values()} == {"2"}


# -- nat: fertilities, teachers, rescorers, glancing, CTC
# ------------------------------------------------------------------


NAT = ("--arch", "nat_tiny", "--criterion", "nar_loss")


@pytest.fixture(scope="session")
def nats(made, tmp_path_factory) -> Namespace:
    """The corpus with fertilities of its own, and checkpoints of a nat with and without them."""
    root = tmp_path_factory.mktemp("nat")
    data = Path(shutil.copytree(made.data, root / "bin"))
    align.main([str(data)])
    here("fairseq-train", data, *TRAIN, *NAT, "--save-dir", root / "fertile")
    here("fairseq-train", data, *TRAIN, *NAT, "--ctc", "--save-dir", root / "ctc")
    last = "checkpoint_last.pt"
    return Namespace(data=data, fertile=root / "fertile" / last, ctc=root / "ctc" / last)


def test_training_without_fertilities_names_the_file_and_the_command(data, tmp_path):
    said = refusal(*train(data, tmp_path / "save", arch=NAT))
    assert "valid.src-tgt.fert" in said and "nar-align" in said
    assert not (tmp_path / "save").exists() or not list((tmp_path / "save").glob("*.pt"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines[:-1], lines[-1] + " 1"],
        lambda lines: [str(int(lines[0].split()[0]) + 1) + " " + " ".join(lines[0].split()[1:]), *lines[1:]],
    ],
)
def test_fertilities_that_do_not_fit_are_refused(nats, tmp_path, spoil):
    data = Path(shutil.copytree(nats.data, tmp_path / "bin"))
    file = data / "train.src-tgt.fert"
    file.write_text("\n".join(spoil(file.read_text().splitlines())) + "\n")
    said = refusal(*train(data, tmp_path / "save", arch=NAT))
    assert str(file) in said and "nar-align" in said


def test_generation_needs_no_fertilities(made, nats):
    assert len(hypotheses(here(*generate(made, path=nats.fertile)))) == 11


def test_a_schedule_that_cannot_be_read_is_refused(data, tmp_path):
    assert "--glancing '0.5:0.3'" in refusal(*train(data, tmp_path, "--ctc", "--glancing", "0.5:0.3", arch=NAT))


def test_flags_that_do_not_go_together_exit_with_one_line(data, tmp_path):
    line = last_line(*train(data, tmp_path, "--ctc", "--source-copy", "fertility", arch=NAT))
    assert line == "ValueError: --ctc needs no fertilities: --source-copy uniform or soft"


@pytest.mark.parametrize("model", ["fertile", "ctc"])
def test_a_parallel_model_is_no_rescorer(made, nats, model):
    noisy = ("--generator", "noisy_parallel") if model == "fertile" else ("--ctc-beam", "3")
    said = refusal(*generate(made, *noisy, "--rescorer", made.cmlm, path=getattr(nats, model)))
    assert "checkpoint_last.pt" in said and "autoregressive" in said
    both = f"{getattr(nats, model)}:{made.cmlm}"
    assert "autoregressive" in refusal(*generate(made, *noisy, "--iter-decode-with-external-reranker", path=both))


def test_one_checkpoint_cannot_be_model_and_reranker(made, nats):
    said = refusal(*generate(made, "--iter-decode-with-external-reranker", path=nats.fertile))
    assert said.startswith("--iter-decode-with-external-reranker takes the last of several")


def test_noisy_parallel_without_a_rescorer_is_refused(made, nats):
    assert "--rescorer CKPT" in refusal(*generate(made, "--generator", "noisy_parallel", path=nats.fertile))


def test_a_rescorer_works_for_mask_predicts_lengths(made):
    plain, rescored = (
        hypotheses(here(*generate(made, "--nbest", 5, *flags))) for flags in ((), ("--rescorer", made.ar))
    )
    for i in range(11):
        assert sorted(text for _, text in plain[i]) == sorted(text for _, text in rescored[i])
    assert plain != rescored


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("use", ["--rescorer", "--teacher"])
def test_a_teacher_of_another_dictionary_is_refused_naming_the_first_symbol(
    made, other_data, nats, tmp_path, use, stored
):
    here("fairseq-train", other_data.same, *TRAIN, *AR, "--save-dir", tmp_path / "other", "--valid-subset", "test")
    path = tmp_path / "other" / "checkpoint_last.pt"
    if not stored:  # as of fairseq's own task: its data folder is the only witness
        state = torch.load(path, weights_only=True)
        state["task_state"] = {}
        torch.save(state, path)
    if use == "--rescorer":
        said = refusal(*generate(made, "--rescorer", path))
    else:
        said = refusal(*train(nats.data, tmp_path / "save", "--teacher", path, arch=NAT))
    assert "dictionary" in said and "is not the checkpoint's" in said and "'w" in said and "'v" in said


def test_targets_too_long_for_ctc_are_counted_and_never_nan(tmp_path, caplog):
    text = [("w1 w2", "w1 w1 w1 w1 w1 w1"), *pairs(40, 1)]
    data = binarise(tmp_path / "text", {"train": text, "valid": text})
    with caplog.at_level("INFO"):
        here(*train(data, tmp_path / "save", "--ctc", "--glancing", "0.5", "--log-interval", 1, arch=NAT))
    assert "| skipped 1 " in caplog.text and "nan" not in re.findall(r"loss[ =]([^ ,]+)", caplog.text)


def test_label_smoothing_is_refused_with_ctc(data, tmp_path):
    assert "--label-smoothing" in refusal(*train(data, tmp_path, "--ctc", "--label-smoothing", 0.1, arch=NAT))
