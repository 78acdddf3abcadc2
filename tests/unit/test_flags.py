"""nar-flags, docs/flags.md and --help of fairseq's commands: every flag of this package, from the parsers
themselves.
"""

import sys
from unittest import mock

import pytest
from conftest import ROOT
from in_process import MAINS, own_refusal
from own_flags import own_actions

from nar_plugins.cli import convert, distill, flags

USER_DIR = ("--user-dir", str(ROOT / "nar_plugins"))


def printed(capsys, main, *arguments) -> str:
    """What a command prints before it ends without an error."""
    with mock.patch.object(sys, "argv", ["command", *arguments]), pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code, done.value
    return capsys.readouterr().out


def flags_in(page: str) -> set:
    """The flags that a page of help explains, one a line and before the text about it."""
    lines = [line.strip() for line in page.splitlines()]
    return {
        word.rstrip(",") for line in lines if line.startswith("-") for word in line.split()[:3] if word.startswith("--")
    }


def names(kind: str, *owners: str, **of) -> set:
    """The flags of every section that one of the owners has a part in."""
    found = [
        section
        for section in flags.sections(**of)
        if section.kind == kind and (not owners or set(owners) & set(section.owners))
    ]
    return {name for section in found for flag in section.flags for name in flag.names.split(", ")}


def test_the_page_of_flags_is_what_the_parsers_say():
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == flags.markdown(flags.sections()), "write it anew: nar-flags --markdown > docs/flags.md"


def test_every_flag_is_listed_with_its_owner():
    for who, actions in own_actions().items():
        kind, owner = who.split()
        wanted = {name for action in actions for name in action.option_strings}
        listed = names(kind, owner) | (names("generator") if owner == "nar_translation" else set())
        assert wanted and wanted <= listed, who
    assert {"--wordpiece-vocab", "--wordpiece-cased"} == names("bpe", "wordpiece")
    assert "--length-beam" not in names("task") and "--data" not in names("task")


def test_values_and_defaults_are_those_of_the_parsers():
    found = {flag.names: flag for section in flags.sections() for flag in section.flags}
    assert found["--schedule"].value == "{linear,cosine,confidence}" and found["--schedule"].default == "linear"
    assert (found["--iterations"].value, found["--iterations"].default) == ("N", "10")
    assert (found["--ctc"].value, found["--ctc"].default) == ("", "off")
    assert found["--rescorer"].default == ""
    assert "mask_predict" in found["--generator"].value and "beam" in found["--generator"].value
    assert (
        found["--positional-attention, --no-positional-attention"].default
        == "off; on in nat_iwslt_de_en, nat_tiny, nat_wmt_en_de"
    )
    tiny = {flag.names: flag.default for section in flags.sections("train", "nat_tiny") for flag in section.flags}
    assert tiny["--positional-attention, --no-positional-attention"] == "on" and tiny["--source-copy"] == "fertility"


def test_an_architecture_has_its_own_flags_only():
    nat = dict(command="train", arch="nat_tiny")
    assert "--glancing" in names("model", **nat) and not names("model", "blockwise", **nat)
    assert "--finetune-weight" in names("criterion", **nat) and not names("criterion", "bang_loss", **nat)
    assert names("generator", **nat) >= {"--fertility-samples", "--fertility", "--length-beam", "--decode-dtype"}
    assert not names("generator", **nat) & {"--iterations", "--bang-policy", "--verify-block"}
    assert not names("task", "bang_pretraining", **nat)
    bang = dict(command="train", arch="bang_base")
    assert "--tokens-per-sample" in names("task", **bang) and "--bang-rows" in names("criterion", **bang)
    assert names("generator", **bang) >= {"--bang-policy", "--verify-block", "--decode-dtype"}
    assert not names("model", command="generate") and not names("task", "bang_pretraining", command="generate")
    assert names("generator", command="generate") == names("generator", command="interactive") == names("generator")
    assert "--bang-rows" in names("criterion", command="validate")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["generat"], "no command 'generat': choose train, generate, interactive, validate"),
        (["train", "nat_tinny"], "no architecture 'nat_tinny' in this package: choose bang, "),
        (["nat_tinny"], "no command 'nat_tinny'"),
        (["transformer"], "no architecture 'transformer' in this package"),
    ],
)
def test_what_there_is_not_is_named(arguments, says):
    assert own_refusal(flags.main, *arguments).startswith(f"nar-flags: {says}")


@pytest.mark.parametrize("arguments", [["fairseq-generate", "cmlm_tiny"], ["generate", "cmlm_tiny"]])
def test_the_command_prints_them(capsys, arguments):
    flags.main(arguments)
    page = capsys.readouterr().out
    assert (
        "generator mask_predict" in page and "--iterations N  (default: 10)" in page and "passes of the decoder" in page
    )
    assert "--glancing" not in page
    flags.main(["cmlm_tiny"])
    assert "criterion nar_loss" in capsys.readouterr().out


# -- --help of the commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fairseq-train", "fairseq-generate", "fairseq-interactive", "fairseq-validate"])
@pytest.mark.parametrize("task", [(), ("--task", "nar_translation")])
def test_help_shows_the_flags_of_the_task(capsys, command, task):
    page = printed(capsys, MAINS[command].cli_main, *USER_DIR, *task, "--help")
    assert flags_in(page) >= names("task", "nar_translation") | names("generator") | {
        "--eval-bleu",
        "--source-lang",
        "--seed",
    }
    assert "nar-flags" in page


@pytest.mark.parametrize(
    "arch, criterion",
    [
        ("nat_tiny", "nar_loss"),
        ("dag_tiny", "nar_loss"),
        ("cmlm", "nar_loss"),
        ("blockwise_tiny", "blockwise_loss"),
        ("bang", "bang_loss"),
    ],
)
def test_help_shows_those_of_the_architecture_and_the_criterion(capsys, arch, criterion):
    chosen = ("--arch", arch, "--task", "nar_translation", "--criterion", criterion, "--optimizer", "adam")
    page = printed(capsys, MAINS["fairseq-train"].cli_main, "data", *USER_DIR, *chosen, "-h")
    ours = names("model", command="train", arch=arch) | names("criterion", command="train", arch=arch)
    assert flags_in(page) >= ours | {"--encoder-embed-dim", "--adam-betas", "--max-update"}


def test_help_of_another_task(capsys):
    page = printed(capsys, MAINS["fairseq-train"].cli_main, *USER_DIR, "--task", "bang_pretraining", "--help")
    assert "--span-ratio" in flags_in(page) and "--eval-bleu" not in flags_in(page)


def test_a_wrong_name_beside_help_is_still_refused(capsys):
    with mock.patch.object(sys, "argv", ["fairseq-train", *USER_DIR, "--arch", "nat_tinny", "--help"]):
        with pytest.raises(SystemExit) as error:
            MAINS["fairseq-train"].cli_main()
    assert error.value.code == 2 and "nat_tinny" in capsys.readouterr().err


def test_help_of_our_own_commands(capsys):
    page = printed(capsys, distill.main, "--help")
    assert flags_in(page) >= {"--teacher", "--mix", "--decode-dtype", "--source-lang", "--beam"}
    page = printed(capsys, convert.main, "bang", "--help")
    assert "https://github.com/microsoft/BANG" in page
