"""The translation recipes: every command of a dry run parses, and each runs from raw text to scores in miniature."""

import importlib.util
import re
import shlex

import forked
import pytest
import torch
from command_lines import PARSERS, Command, parse
from shell import bash

from nar_plugins.modules.fast.forms import int8_lacks

MODELS = ("ar", "ar-12-1", "nat", "nat-ft", "glat", "ctc", "dag", "cmlm", "frozen", "block", "bang-ar", "bang")
ALL = " ".join([*MODELS, *(f"kd-{model}" for model in MODELS)])
MULTI30K = (
    "ar cmlm dag stock kd-ar kd-ar-12-1 kd-nat kd-nat-ft kd-glat kd-ctc kd-ctc-pruned kd-ctc-small kd-dag kd-cmlm "
    "kd-frozen kd-block kd-bang-ar kd-bang"
)
RECIPES = {"wmt14_en_de": ALL, "wmt16_en_ro": ALL, "iwslt14_de_en": ALL, "tatoeba_en_de": ALL, "multi30k": MULTI30K}


def commands(output: str, where: str = "dry run"):
    """The commands of this project and of fairseq that a dry run prints."""
    found = []
    for line in output.splitlines():
        words = shlex.split(line.split(" > ")[0], comments=True)
        name = words[0].split("/")[-1] if words else ""
        if re.fullmatch(r"(fairseq|nar)-[a-z]+", name):
            found.append(Command(where, name, words[1:]))
    return found


def value(command: Command, flag: str) -> str:
    """A flag's last value."""
    return [after for word, after in zip(command.arguments, command.arguments[1:]) if word == flag][-1]


# -- dry runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_command_of_a_dry_run_parses(recipe, tmp_path):
    work = tmp_path / "work"
    output = bash("examples/run.sh", recipe, RECIPES[recipe], work, "--dry-run")
    found = commands(output, recipe)
    trained = [value(command, "--save-dir").split("/")[-1] for command in found if command.name == "fairseq-train"]
    assert trained == RECIPES[recipe].split()
    decoded = [c for c in found if c.name in ("fairseq-generate", "nar-bench")]
    for model in set(trained) - {"bang-ar", "kd-bang-ar", "kd-ar"}:
        assert any(f"{work}/{model}/" in " ".join(command.arguments) for command in decoded), model
    for command in {(c.name, *(re.sub(r"\S*/work/\S*", "1", word) for word in c.arguments)): c for c in found}.values():
        if command.name in PARSERS and "--task" in command.arguments and value(command, "--task") == "translation_lev":
            continue  # fairseq's own model: it runs in miniature
        parse(command)
    assert not work.exists()


def test_a_paper_s_update_is_made_up_from_the_devices():
    train = ("examples/wmt14_en_de/train.sh", "cmlm", "", "", "--dry-run")
    for gpus, tokens, frequency in (("1", "4096", "32"), ("8", "8192", "2"), ("16", "8192", "1"), ("3", "8192", "6")):
        (command,) = commands(bash(*train, GPUS=gpus, MAX_TOKENS=tokens, DEVICE=""))
        assert [value(command, flag) for flag in ("--distributed-world-size", "--max-tokens", "--update-freq")] == [
            gpus,
            tokens,
            frequency,
        ]
        assert "--cpu" not in command.arguments


def test_the_command_line_has_the_last_word():
    output = bash(
        "examples/iwslt14_de_en/train.sh", "--dry-run", "cmlm", "123", "W", "--dropout", "0.5", TEACHER="t.pt"
    )
    (command,) = commands(output)
    assert value(command, "--dropout") == "0.5" and value(command, "--max-update") == "123"
    assert value(command, "--save-dir") == "W/cmlm"
    output = bash("examples/iwslt14_de_en/train.sh", "kd-nat", "--dry-run", TEACHER="t.pt", DIRECTION="en-de")
    align, command = commands(output)
    assert value(command, "--init-encoder-from") == "t.pt" and align.name == "nar-align"
    assert value(command, "--save-dir").endswith("/work/iwslt14_en_de/kd-nat")


@pytest.mark.parametrize(
    "script, arguments, variables, message",
    [
        ("wmt14_en_de/train.sh", ["nut"], {}, "no model 'nut': ar, ar-12-1, nat"),
        ("multi30k/train.sh", ["nut"], {}, "no model 'nut': ar, cmlm, stock"),
        ("../scripts/quickstart.sh", ["--models", "ctc,ar,ctc"], {}, "--models names 'ctc' twice"),
        ("wmt14_en_de/train.sh", ["ar", "work"], {}, "UPDATES is a number, not 'work'"),
        ("wmt14_en_de/train.sh", ["ar", "", "nowhere"], {}, "no nowhere/bin/dict.de.txt: run prepare.sh"),
        ("wmt14_en_de/distill.sh", ["nowhere"], {}, "no nowhere/ar/checkpoint_last.pt: train ar first"),
        ("wmt14_en_de/generate.sh", [], {"DIRECTION": "de-fr"}, "DIRECTION=de-fr is neither en-de nor de-en"),
        ("wmt14_en_de/prepare.sh", [], {"PIECES": "words"}, "PIECES=words is neither bpe nor spm"),
        ("wmt16_en_ro/prepare.sh", ["--dry-run"], {"DIACRITICS": "no"}, "DIACRITICS=no is neither keep nor strip"),
        ("run.sh", ["quickstart"], {}, "no recipe 'quickstart': iwslt14_de_en multi30k tatoeba_en_de wmt14_en_de"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(script, arguments, variables, message):
    output = bash(f"examples/{script}", *arguments, expect=2, **variables)
    assert message in output.splitlines()[-1]


# -- in miniature ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def venv():
    return forked.commands().parent


def needs_moses() -> None:
    for package in ("sacremoses", "subword_nmt"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: pip install -e '.[recipes]'")


@pytest.mark.parametrize(
    "recipe, models, variables",
    [
        ("wmt14_en_de", "ar kd-nat kd-nat-ft", {}),
        ("wmt16_en_ro", "ar kd-glat", {"DIRECTION": "ro-en", "DIACRITICS": "strip"}),
        ("iwslt14_de_en", "ar kd-cmlm dag", {}),
        ("tatoeba_en_de", "ar kd-bang-ar kd-bang", {}),
        ("multi30k", "ar stock kd-frozen kd-block", {}),
    ],
)
def test_a_recipe_runs_from_raw_text_to_scores(recipe, models, variables, tmp_path, venv):
    given = {"MINI": 1, "VENV": venv, "WORKERS": 1, **variables}
    if recipe.startswith(("wmt", "iwslt")):
        needs_moses()
    work = tmp_path / "work"
    output = bash("examples/run.sh", recipe, models, work, **given)
    for model in models.split():
        assert (work / model / "checkpoint_last.pt").exists()
    scores = re.findall(r"^BLEU \d+\.\d+  nrefs:1\|.*\|tok:(\w+)\|", output, re.M)
    if recipe == "multi30k":
        systems = re.findall(r"^\| (AR greedy, blockwise by frozen heads.*?) +\|", output, re.M)
        int8 = int8_lacks(torch.device("cpu")) is None
        assert len(scores) == 3 and {name.partition("heads")[2] for name in systems} == {"", *[", int8"] * int8}
        return
    decodings = len(list((work / "generated").glob("*.out")))
    assert decodings > len(models.split()) and scores.count("13a") == decodings
    assert scores.count("none") == (0 if recipe == "tatoeba_en_de" else decodings)
    if recipe != "tatoeba_en_de":
        return  # a second run is the same in all
    again = bash("examples/run.sh", recipe, models, work, **given)
    assert "is there already" in again and again.count("trained already") == len(models.split())
    assert re.findall(r"^BLEU.*", again, re.M) == re.findall(r"^BLEU.*", output, re.M)


def test_a_preparation_that_stopped_goes_on(tmp_path, venv):
    needs_moses()
    work, given = tmp_path / "work", {"MINI": 1, "VENV": venv, "WORKERS": 2}
    prepare = ("examples/wmt14_en_de/prepare.sh", "", work)
    bash(*prepare, **given)
    before = {path: path.stat().st_mtime_ns for path in work.glob("*.tok.*")}
    pieces = {path: path.read_bytes() for path in work.glob("*.sp.*")}
    assert len(before) == len(pieces) == 6 and "@@" in (work / "test.sp.de").read_text(encoding="utf-8")
    (work / "bin" / "dict.de.txt").unlink()
    (work / "bpe.codes").unlink()
    (work / "valid.sp.en.part").write_text("half")
    bash(*prepare, **given)
    assert before == {path: path.stat().st_mtime_ns for path in work.glob("*.tok.*")}
    assert pieces == {path: path.read_bytes() for path in work.glob("*.sp.*")}
    assert (work / "bin" / "dict.de.txt").exists()
    output = bash(*prepare, PIECES="spm", expect=2, **given)
    assert "was prepared with PIECES=bpe, not spm: name another WORK" in output
    output = bash(*prepare, expect=2, VENV=venv)
    assert "was prepared as 'bpe mini', not 'bpe': name another WORK" in output


def test_sentencepiece_cuts_lower_cased_text(tmp_path, venv):
    work = tmp_path / "work"
    bash("examples/iwslt14_de_en/prepare.sh", "", work, MINI=1, PIECES="spm", VENV=venv, WORKERS=2)
    text, pieces = ((work / f"test{form}.en").read_text(encoding="utf-8") for form in ("", ".sp"))
    assert text != text.lower() and pieces.replace(" ", "").replace("\u2581", " ").replace("\n ", "\n").strip() == (
        text.lower().strip()
    )
    assert (work / "bin" / "dict.en.txt").exists() and not (work / "test.tok.en").exists()
