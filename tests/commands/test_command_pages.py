"""Every console script has a page, which docs/commands.md names; its flags are those of the script, and all of them."""

import argparse
import ast
import importlib
import re
import sys
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Dict, List, Set
from unittest import mock

import pytest
from command_lines import ENTRY_POINTS
from conftest import ROOT
from test_documented_commands import commands_in, quoted_messages

INDEX = ROOT / "docs" / "commands.md"
GENERATION = ROOT / "docs" / "flags.md"  # what a page need not repeat


def index() -> Dict[str, Path]:
    """Command -> its page, of the table in docs/commands.md."""
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| \[[^]]*\]\(([^)#]+)[^)]*\)", INDEX.read_text(encoding="utf-8"), re.M)
    return {name: INDEX.parent / page for name, page in rows}


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    module = importlib.import_module(ENTRY_POINTS[name].split(":")[0])
    return module.build_parser()


def flags_of(parser: argparse.ArgumentParser) -> Set[str]:
    """The flags of a parser and of its sub-commands; of one that extends fairseq's, those of its own group."""
    own = [group for group in parser._action_groups if group.title == "distillation"]
    actions = [action for group in own for action in group._group_actions] or parser._actions
    found = set()
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind in action.choices.values():
                found |= flags_of(kind)
        found |= {name for name in action.option_strings if name not in ("-h", "--help")}
    return found


def named(text: str) -> Set[str]:
    """The flags that a text names."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text))


def section_of(name: str) -> str:
    """What the page says of a command: the whole page, or the sections below the heading of the link."""
    link = re.search(rf"^\| `{name}` \|.*\]\(([^)]+)\)", INDEX.read_text(encoding="utf-8"), re.M).group(1)
    page, _, anchor = link.split(")")[0].partition("#")
    text = (INDEX.parent / page).read_text(encoding="utf-8")
    if not anchor:
        return text
    parts = re.split(r"^(?=## )", text, flags=re.M)
    return next(part for part in parts if part.lower().startswith(f"## {anchor.replace('-', ' ')}\n"))


def fixed_words(node: ast.AST) -> List[str]:
    """The words of a string in the code that no value changes."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in parts)
    return [word for word in text.split() if "\0" not in word]


@lru_cache(maxsize=None)
def strings() -> List[List[str]]:
    """The fixed words of every string in the code that has some."""
    found = []
    for path in sorted((ROOT / "nar_plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.append(fixed_words(node))
    return [words for words in found if len(words) > 2]


def is_there(message: str) -> bool:
    """Whether the code has a message: it has all fixed words of a string, in order; of one that is cut (...) the first
    three.
    """
    shown, cut, _ = message.partition("...")
    for fixed in strings():
        words = iter(shown.split())
        common = sum(1 for _ in takewhile(lambda word, words=words: word in words, fixed))
        if common == len(fixed) or (cut and common >= 3):
            return True
    return False


def test_every_console_script_has_a_page_and_every_page_a_script():
    assert index().keys() == ENTRY_POINTS.keys()
    pages = {page.resolve() for page in index().values()}
    assert {page.resolve() for page in (ROOT / "docs" / "commands").iterdir()} <= pages
    for page in (ROOT / "README.md", ROOT / "docs" / "start_here.md"):
        assert "commands.md" in page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_a_page_has_an_example_that_parses_and_all_flags(name):
    """That the examples parse is test_documented_commands.py's."""
    assert name in {command.name for command in commands_in(index()[name])}
    flags, text = flags_of(parser_of(name)), section_of(name)
    missing = {flag for flag in flags if flag.startswith("--")} - named(text)
    assert not missing, f"{index()[name].name} does not name {', '.join(sorted(missing))}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "commands").iterdir()), ids=lambda page: page.stem)
def test_a_page_says_what_goes_in_what_comes_out_and_what_is_refused(page):
    text = page.read_text(encoding="utf-8")
    (name,) = [name for name, where in index().items() if where.name == page.name]
    assert text.startswith(f"# {name}\n")
    assert "**Input**" in text and "**Output**" in text or re.search(r"^\| \| input \| output \|$", text, re.M)
    messages = quoted_messages(page)
    assert messages or name == "nar-user-dir"  # which refuses nothing
    assert not [message for message in messages if not is_there(message)]
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "commands").iterdir()), ids=lambda page: page.stem)
def test_the_flags_that_a_page_names_exist(page):
    (name,) = [name for name, where in index().items() if where.name == page.name]
    known = flags_of(parser_of(name)) | named(GENERATION.read_text(encoding="utf-8")) | FAIRSEQS
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    flags = {flag for code in re.findall(r"`([^`]+)`", prose) for flag in named(code) if flag.startswith("--")}
    assert not flags - known, f"{page.name} names {', '.join(sorted(flags - known))}"


def fairseqs() -> Set[str]:
    """All flags of fairseq-train, -generate and -preprocess."""
    from fairseq import options

    parsers = (options.get_training_parser, options.get_generation_parser, options.get_preprocessing_parser)
    with mock.patch.object(sys, "argv", ["command"]):
        return {name for parser in parsers for action in parser()._actions for name in action.option_strings}


FAIRSEQS = fairseqs()


def test_a_flag_that_is_missing_or_unknown_would_be_found():
    parser = argparse.ArgumentParser()
    parser.add_argument("--there")
    kinds = parser.add_subparsers()
    kinds.add_parser("kind").add_argument("-x", "--below")
    assert flags_of(parser) == {"--there", "-x", "--below"}
    assert named("`--there X` and `-x`, not a--b or well-known") == {"--there", "-x"}
    assert is_there("b.pt is given twice: it would count twice") and is_there("no command 'x': choose ...")
    assert not is_there("b.pt is given thrice: it would count thrice") and not is_there("the colour differs: paint ...")
