"""The small inputs that users of this and of other projects came with, where a folder of test inputs is beside the
checkout; without it these tests are skipped.

Each stands for a kind that has its own tests; here the inputs go through the commands as they were reported.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, hypotheses, write_pairs
from in_process import here, refusal
from test_bad_input import binarise

from nar_plugins.cli import align, score
from nar_plugins.data.lines import read_lines
from nar_plugins.hub import from_pretrained
from nar_plugins.measure.generations import read_generation

CASES = ROOT.parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases beside the project")

OURS = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
TRAIN = (
    "--optimizer",
    "adam",
    "--lr",
    "3e-3",
    "--max-tokens",
    "400",
    "--max-update",
    "4",
    "--num-workers",
    "0",
    "--cpu",
    "--no-progress-bar",
    "--share-all-embeddings",
    "--max-source-positions",
    "30",
    "--max-target-positions",
    "30",
)
MODELS = {
    "ar": ("--arch", "transformer_tiny", "--criterion", "cross_entropy"),
    "cmlm": ("--arch", "cmlm_tiny", "--criterion", "nar_loss"),
    "nat": ("--arch", "nat_tiny", "--criterion", "nar_loss", "--source-copy", "uniform"),
    "ctc": ("--arch", "nat_tiny", "--criterion", "nar_loss", "--ctc"),
    "dag": ("--arch", "dag_tiny", "--criterion", "nar_loss", "--upsample", "4", "--max-target-positions", "120"),
    "blockwise": ("--arch", "blockwise_tiny", "--criterion", "blockwise_loss"),
    "bang": ("--arch", "bang_tiny", "--criterion", "bang_loss"),
}
PRINTS = ("", "--print-step", "--retain-iter-history", "--retain-iter-history --print-step", "--nbest 1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A toy of the words s1 .. s7 -> t1 .. t7, and every model after four updates; the AR one by fairseq's own task,
    with BLEU.
    """
    root = tmp_path_factory.mktemp("cases")
    lines = [" ".join(f"s{1 + (i * k + k * k) % 7}" for k in range(1, 3 + i % 5)) for i in range(80)]
    pairs = [(line, line.replace("s", "t")) for line in lines]
    data = binarise(root / "text", {"train": pairs, "valid": pairs[:9], "test": pairs[9:15]})
    for name, flags in MODELS.items():
        task = OURS
        if name == "ar":
            task = (
                "--task",
                "translation",
                "--eval-bleu",
                "--eval-bleu-args",
                '{"beam": 1, "max_len_b": 10}',
                "--best-checkpoint-metric",
                "bleu",
                "--maximize-best-checkpoint-metric",
            )
        here("fairseq-train", data, *task, *TRAIN, *flags, "--save-dir", root / name)
    return root


def checkpoint(made: Path, name: str) -> Path:
    return made / name / "checkpoint_last.pt"


def binarised_case(made: Path, folder: Path, case: str, *flags) -> Path:
    """A copy of the data whose test set is a case."""
    lines = (CASES / case).read_text(encoding="utf-8").split("\n")[:-1]
    write_pairs(folder, [(line, "t1") for line in lines], "test")
    dictionaries = ("--srcdict", made / "text" / "bin" / "dict.src.txt", "--joined-dictionary")
    here(
        "fairseq-preprocess",
        "-s",
        "src",
        "-t",
        "tgt",
        *dictionaries,
        f"--testpref={folder / 'test'}",
        "--destdir",
        folder / "bin",
    )
    return folder / "bin"


def best(output: str) -> list:
    """The best hypotheses as text, in the order of the sentences."""
    found = hypotheses(output)
    return [found[number][0][1] for number in sorted(found)]


def bleu(capsys, *arguments) -> float:
    score.main([str(argument) for argument in arguments])
    return float(re.search(r"BLEU ([\d.]+)", capsys.readouterr().out)[1])


def test_every_case_is_tried():
    known = Path(__file__).read_text(encoding="utf-8")
    assert [case.name for case in CASES.iterdir() if case.name not in known and case.name != "README.md"] == []


def hub(made: Path, name: str, data: Path, case: str) -> list:
    """The translations from Python, one for each line of a case."""
    translator = from_pretrained(checkpoint(made, name), data, cpu=True)
    return [found.text for found in translator.translate(read_lines(CASES / case))]


def test_chinese_text_has_a_score(capsys):
    assert bleu(capsys, CASES / "zh.hyp", CASES / "zh.ref", "--target-lang", "zh") == 76.67
    assert bleu(capsys, CASES / "zh.hyp", CASES / "zh.ref", "--tokenize", "zh") == 76.67


def test_only_a_newline_ends_a_line(capsys):
    assert bleu(capsys, CASES / "ls.hyp", CASES / "ls.ref") == 100.0
    assert bleu(capsys, CASES / "ls.out") == 100.0
    assert read_generation("ls", read_lines(CASES / "ls.out")).length_errors == Counter({0: 2})


@pytest.mark.parametrize("name", MODELS)
def test_a_blank_line_between_two_sentences(made, tmp_path, name):
    data = binarised_case(made, tmp_path, "empty_line.src")
    for flags in PRINTS:
        found = best(here("fairseq-generate", data, *OURS, "--path", checkpoint(made, name), *flags.split()))
        assert len(found) == 3
        assert name in ("ar", "blockwise") or found[1] == ""
    assert hub(made, name, data, "empty_line.src") == found


def interactive(data: Path, case: str, *flags) -> list:
    return best(here("fairseq-interactive", data, *flags, "--input", CASES / case))


@pytest.mark.parametrize("name", MODELS)
def test_a_reserved_symbol_as_a_word(made, tmp_path, name):
    data = binarised_case(made, tmp_path, "mask.src")
    given = (*OURS, "--path", checkpoint(made, name))
    generated = best(here("fairseq-generate", data, *given))
    assert interactive(data, "mask.src", *given) == generated and len(generated) == 2
    assert hub(made, name, data, "mask.src") == generated
    if name == "ar":
        assert (
            interactive(data, "mask.src", "--cpu", "--path", checkpoint(made, name)) == generated
        )  # fairseq's translation
        assert interactive(data, "mask.src", *given, "--generator", "blockwise", "--beam", "1") == interactive(
            data, "mask.src", "--cpu", "--path", checkpoint(made, name), "--beam", "1"
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_line_of_unknown_words_is_translated_with_a_warning(made, tmp_path, name, caplog):
    data = binarised_case(made, tmp_path, "oov.src")
    assert len(best(here("fairseq-generate", data, *OURS, "--path", checkpoint(made, name)))) == 1
    assert len(hub(made, name, data, "oov.src")) == 1
    assert any("<unk>" in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_links_that_do_not_cover_the_data_are_refused(tmp_path, capsys):
    for side, case in (("src", "bpe.src"), ("tgt", "bpe.tgt")):
        (tmp_path / f"train.{side}").write_bytes((CASES / case).read_bytes())
    here(
        "fairseq-preprocess",
        "-s",
        "src",
        "-t",
        "tgt",
        f"--trainpref={tmp_path / 'train'}",
        "--destdir",
        tmp_path / "bin",
    )
    for case in ("blank.align", "word_level.align"):
        with pytest.raises(SystemExit) as error:
            align.main([str(tmp_path / "bin"), "--splits", "train", "--alignments", str(CASES / case)])
        assert case in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "bin").glob("*.fert"))


def test_an_ar_checkpoint_of_fairseqs_own_recipe_and_one_of_old_fairseq(made, tmp_path):
    data, old = made / "text" / "bin", tmp_path / "old.pt"
    assert len(best(here("fairseq-generate", data, *OURS, "--path", checkpoint(made, "ar")))) == 6
    here("fairseq-train", data, *OURS, *TRAIN, *MODELS["ar"], "--save-dir", tmp_path)
    new = tmp_path / "checkpoint_last.pt"
    # pickling a class of fairseq.meters imports fairseq, and that puts its own fairseq.meters in the place of the
    # script's
    alone = "import runpy, sys, types; sys.modules['fairseq'] = types.ModuleType('fairseq'); "
    alone += "runpy.run_path(sys.argv.pop(1))"
    script = [sys.executable, "-c", alone, str(CASES / "old_meters.py"), str(new), str(old)]
    subprocess.run(script, check=True, capture_output=True)
    given = ("fairseq-generate", data, *OURS, "--path")
    assert best(here(*given, old)) == best(here(*given, new))


def test_a_forgotten_task_is_named(made):
    for name in ("cmlm", "nat", "ctc", "blockwise", "bang"):
        given = ("--cpu", "--user-dir", ROOT / "nar_plugins", "--path", checkpoint(made, name))
        said = refusal("fairseq-generate", made / "text" / "bin", *given)
        assert "--task nar_translation" in said
