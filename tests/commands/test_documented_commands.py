"""Every fairseq-* and nar-* command line in README, docs, examples and scripts parses, every link of a page leads to a
file, and every flag of ours is read.

A shell script is not run. Its assignments are collected (arrays, ``case`` branches and ``for`` loops give
alternatives), its variables are put in, and what is unknown becomes a placeholder that is a word and a number.
"""

import ast
import itertools
import re
import shlex
from pathlib import Path
from typing import Dict, List

import pytest
from command_lines import ENTRY_POINTS, PARSERS, UNKNOWN, Command, parse
from conftest import ROOT
from own_flags import own_actions

import nar_plugins  # noqa: F401
from nar_plugins.generators.option_values import old_names

ENDS = {";", "&", "&&", "|", "||", ";;", "(", ")", "{", "}", "then", "do", "|&"}
MOST = 60  # combinations of the alternatives of one line


# -- reading shell -----------------------------------------------------------------------------------------------------


def closing(text: str, start: int) -> int:
    """Index of the unquoted ``)`` that closes what is open at ``start``."""
    quote, i = None, start
    while i < len(text):
        c = text[i]
        if quote:
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c == "#" and text[i - 1] in " \n":
            i = text.find("\n", i)
        elif c == ")":
            return i
        i += 1
    raise ValueError(f"an array is not closed: {text[start : start + 60]}")


def words(text: str) -> List[str]:
    """The words of a line of shell, with its operators as words of their own; quotes are removed, variables stay."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def plain(text: str) -> str:
    """Continuations joined; command and arithmetic substitutions replaced by the placeholder."""
    text = text.replace("\\\n", " ")
    while True:
        shorter = re.sub(r"\$\(\([^()]*\)\)|\$\([^()]*\)|`[^`\n]*`", UNKNOWN, text)
        if shorter == text:
            return text
        text = shorter


def assignments(text: str) -> Dict[str, List[List[str]]]:
    """Variable -> the alternatives of its value, each a list of words."""
    found = {}
    for match in re.finditer(r"(?:^|[\s;(])(\w+)(\+?)=(\()?", text, re.M):
        name, adds, array = match.groups()
        try:
            if array:
                value = words(text[match.end() : closing(text, match.end())].replace("\n", " \n"))
            else:
                value = words(re.split(r"\n|;;?(?=\s|$)", text[match.end() :])[0])[:1]
        except ValueError:
            continue  # a quote over several lines: no command here needs it
        if adds and found.get(name):
            found[name] = [[*old, *value] for old in found[name]] + found[name]
        elif value not in found.setdefault(name, []):
            found[name].append(value)
    for name, values in re.findall(r"\bfor (\w+) in ([^;\n]*)", text):
        try:
            found[name] = [[value] for value in words(values)] or [[UNKNOWN]]
        except ValueError:
            continue  # Python's, in a quote
    return found


VARIABLE = re.compile(r"\$(?:\{(\w+|[@*])(\[[@*]\])?(?::?([-+?=])([^{}]*))?[^{}]*\}|(\w+|[@*#?]))")


def expand(word: str, known: Dict[str, List[List[str]]], depth: int = 0) -> List[List[str]]:
    """The alternatives of a word, each a list of words."""
    if depth > 8:
        return [[UNKNOWN]]
    word = re.sub(r'\$\{(\w+)\[@\]\+"?\$\{\1\[@\]\}"?\}', r"${\1[@]}", word)
    match = VARIABLE.search(word)
    if not match:
        return [[word]]
    name = match.group(1) or match.group(5)
    whole = match.group(0) == word
    if name in "@*":
        alternatives = [[]] if whole else [[""]]
    elif name in known:
        alternatives = [
            [w for part in parts for w in part]
            for value in known[name]
            for parts in itertools.islice(itertools.product(*(expand(w, known, depth + 1) for w in value)), MOST)
        ]
    elif match.group(3) in ("-", "=", "+"):
        alternatives = expand(match.group(4), known, depth + 1)
    else:
        alternatives = [[UNKNOWN]]
    if whole:
        return alternatives
    before, after = word[: match.start()], word[match.end() :]
    inner = " ".join(alternatives[0])
    return expand(f"{before}{inner}{after}", known, depth + 1)


def shell_commands(text: str, where: str, first: int = 1) -> List[Command]:
    """The commands of this project in a piece of shell, once for every alternative of their variables."""
    library = (ROOT / "examples" / "lib.sh").read_text(encoding="utf-8") if "/lib.sh" in text else ""
    out, known = [], assignments(plain(library + text))
    for name in re.findall(r"\$\((nar-[a-z-]+)\)", text):
        out.append(Command(f"{where}:{first + text[: text.index('$(' + name)].count(chr(10))}", name, []))
    line = first
    for logical in re.split(r"(?<!\\)\n", text):
        number, line = line, line + logical.count("\n") + 1
        if not re.search(r"\b(fairseq|nar)-[a-z]", logical):
            continue
        try:
            tokens = words(re.sub(r"(?<=\s)[012](?=>)", "", plain(logical)))
        except ValueError:  # a quote that ends in another line: prose for the user
            continue
        for i, token in enumerate(tokens):
            name = token.split("/")[-1]
            if name not in PARSERS and not (name in ENTRY_POINTS or re.fullmatch(r"nar-[a-z-]+", token)):
                continue
            arguments = []
            for word in itertools.takewhile(lambda w: w not in ENDS, tokens[i + 1 :]):
                if re.fullmatch(r"[<>]+&?", word):
                    arguments.append(None)  # a redirection: the next word is its file
                elif arguments and arguments[-1] is None:
                    arguments[-1] = ""
                else:
                    arguments.append(word)
            parts = [expand(w, known) for w in arguments if w]
            for combination in itertools.islice(itertools.product(*parts), MOST):
                out.append(Command(f"{where}:{number}", name, [w for part in combination for w in part]))
    return out


def commands_in(path: Path) -> List[Command]:
    """Those of a script, or of a page's code: fenced, indented, or between backticks with arguments."""
    text, where = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    if path.suffix == ".sh":
        return shell_commands(text, where)
    out = []
    for match in re.finditer(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S):
        code = re.sub(r"^\$ ", "", match.group(1), flags=re.M)
        out += shell_commands(code, where, text[: match.start(1)].count("\n") + 1)
    prose = re.sub(r"^```[^\n]*\n.*?^```", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.M | re.S)
    for match in re.finditer(r"^    \S.*(?:\n    .*)*", prose, re.M):
        code = re.sub(r"^    (\$ )?", "", match.group(0), flags=re.M)
        out += shell_commands(code, where, prose[: match.start()].count("\n") + 1)
    for match in re.finditer(r"`((?:fairseq|nar)-[a-z-]+ [^`]*--[^`]*)`", prose):
        if "..." not in match.group(1):
            out += shell_commands(match.group(1), where, prose[: match.start()].count("\n") + 1)
    return out


DRY_RUN = re.compile(
    r'^(\. .*/recipe\.sh"|recipe\(\) )', re.M
)  # these print their commands: test_recipes.py parses them
RUN_ELSEWHERE = ROOT / "docs" / "add_a_method.md"  # its commands need the page's own --user-dir: its own test runs them


def pages() -> List[Path]:
    return sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


def documents() -> List[Path]:
    scripts = [*(ROOT / "examples").rglob("*.sh"), *(ROOT / "scripts").glob("*.sh")]
    scripts = [path for path in scripts if not DRY_RUN.search(path.read_text(encoding="utf-8"))]
    return sorted([*(page for page in pages() if page != RUN_ELSEWHERE), *scripts])


COMMANDS = [command for path in documents() for command in commands_in(path)]


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.where}-{c.name}")
def test_a_documented_command_parses(command, capsys):
    assert command.name in PARSERS or command.name in ENTRY_POINTS, f"{command.where}: there is no {command.name}"
    try:
        parse(command)
    except SystemExit:
        said = capsys.readouterr().err.strip().splitlines()
        pytest.fail(f"{command.where}: {command.name} {' '.join(command.arguments)}\n{said[-1] if said else ''}")


def test_every_page_and_script_that_runs_a_command_is_read():
    read = {command.where.split(":")[0] for command in COMMANDS}
    run = re.compile(r"^[^#\n]*\bfairseq-(?:train|generate|interactive|preprocess)\"? [^\n]*", re.M)
    for path in documents():
        code = run.findall(path.read_text(encoding="utf-8"))
        if path.suffix == ".sh" and code:
            assert str(path.relative_to(ROOT)) in read, f"{path}: {code[0]}"


SAMPLE = """
set -euo pipefail
bin=${VENV:-.venv}/bin
recipe=(--optimizer adam --lr 1e-3 --adam-betas "(0.9, 0.98)"  # a comment with ) and "
        --max-update "$updates")
ours=(--user-dir nar_plugins --task nar_translation)
case $model in
    ar) what=("${ours[@]}" --arch transformer --criterion cross_entropy) ;;
    cmlm) what=("${ours[@]}" --arch cmlm_tiny --criterion nar_loss) ;;
esac
OMP_NUM_THREADS=2 "$bin/fairseq-train" "$work/bin" "${what[@]}" \\
    "${recipe[@]}" ${DEVICE:---cpu} 2>&1 | tee "$work/log" || exit 1
for split in valid test; do fairseq-generate DATA --user-dir "$(nar-user-dir)" --gen-subset $split > out.txt; done
echo "now run fairseq-train by hand"
"""


def test_the_reader_expands_what_a_shell_would():
    found = shell_commands(SAMPLE, "sample.sh")
    assert [(c.where.split(":")[1], c.name) for c in found] == [
        ("13", "nar-user-dir"),
        ("11", "fairseq-train"),
        ("11", "fairseq-train"),
        ("13", "fairseq-generate"),
        ("13", "fairseq-generate"),
    ]
    assert found[1].arguments == (
        "1/bin --user-dir nar_plugins --task nar_translation --arch transformer --criterion cross_entropy "
        "--optimizer adam --lr 1e-3 --adam-betas".split()
        + ["(0.9, 0.98)", "--max-update", "1", "--cpu"]
    )
    assert found[2].arguments[5:9] == ["--arch", "cmlm_tiny", "--criterion", "nar_loss"]
    assert [c.arguments[-1] for c in found[3:]] == ["valid", "test"]
    for command in found:
        parse(command)


@pytest.mark.parametrize(
    "line",
    [
        "fairseq-train DATA --user-dir nar_plugins --task nar_translation --arch cmlm_tiny --iteration 10",
        "fairseq-generate DATA --user-dir nar_plugins --task nar_translation --path X --length-beams 5",
        "fairseq-generate DATA --user-dir nar_plugins --task nar_translation --path X --schedule quadratic",
        "fairseq-train DATA --user-dir nar_plugins --task nar_translation --arch cmlm_tinny",
    ],
)
def test_a_wrong_flag_or_value_would_be_found(line):
    (command,) = shell_commands(line, "page.md")
    with pytest.raises(SystemExit):
        parse(command)


# -- links -------------------------------------------------------------------------------------------------------------


def links(text: str) -> List[str]:
    """The targets of a page's links, ``[text](target)`` and ``[name]: target``, without those into the web."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"^\[[^\]\n]+\]: (\S+)", prose, re.M)
    return [target for target in targets if "://" not in target]


def anchors(text: str) -> List[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken_links(page: Path) -> List[str]:
    broken = []
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_or_heading(page):
    assert not broken_links(page)


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A head, here\n[a](page.md) [b](none.md) [c](#a-head-here) [d](#no) [e](https://x.y/z) [f][1] `[g](x)`\n\n"
        "[1]: nowhere.md\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["none.md", "#no", "nowhere.md"]


# -- names -------------------------------------------------------------------------------------------------------------


def missing_names(page: Path) -> List[str]:
    """The names that a row of a table tells the reader to look for, and that no file that the row links to holds."""
    missing = []
    for row in re.findall(r"^\|.*\|$", page.read_text(encoding="utf-8"), re.M):
        linked = [page.parent / target for target in re.findall(r"\]\(([^)#\s]+)\)", row) if "://" not in target]
        files = [file for path in linked for file in ([path] if path.is_file() else path.rglob("*.py"))]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        names = (
            re.findall(r"`([A-Za-z_]\w*)`", re.sub(r"\[[^\]]*\]\([^)]*\)", "", row.split("|", 2)[2])) if files else []
        )
        missing += [name for name in names if not re.search(rf"\b{name}\b", code)]
    return missing


def test_start_here_names_what_is_in_the_files():
    assert not missing_names(ROOT / "docs" / "start_here.md")


def test_a_name_that_is_not_in_its_file_would_be_found(tmp_path):
    (tmp_path / "code.py").write_text("def there(): pass\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("| question | [code](code.py) | `there`, `gone` |\n| `none` | [x](code.py) | |\n", encoding="utf-8")
    assert missing_names(page) == ["gone"]


def quoted_messages(page: Path) -> List[str]:
    """The messages in the first column of a page's tables whose head is ``message``; not those of argparse."""
    tables = re.findall(r"^\| message \|.*\n(?:\|.*\n)+", page.read_text(encoding="utf-8"), re.M)
    cells = [row.split(" | ")[0] for table in tables for row in table.splitlines()[2:]]
    return [match.group(1) for match in (re.match(r"\| `([^`]+)`", cell) for cell in cells) if match]


def longest_run(message: str, code: str) -> int:
    """How many consecutive words of a message stand in the code as they are."""
    words = message.split()
    spans = itertools.combinations(range(len(words) + 1), 2)
    return max(end - start for start, end in spans if " ".join(words[start:end]) in code)


def test_troubleshooting_quotes_messages_that_there_are():
    files = sorted((ROOT / "nar_plugins").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text(encoding="utf-8") for path in files))
    messages = quoted_messages(ROOT / "docs" / "troubleshooting.md")
    assert len(messages) > 20
    theirs = [message for message in messages if not message.startswith("invalid choice")]  # argparse's
    assert not [message for message in theirs if longest_run(message, code) < 3]
    assert longest_run("the colour differs: paint the checkpoint", code) < 3


# -- every flag is read ------------------------------------------------------------------------------------------------


def own_options() -> Dict[str, str]:
    """Attribute of the parsed arguments -> who defines it, for this package's task, models and criterions."""
    return {action.dest: who for who, actions in own_actions().items() for action in actions}


def reads(source: str) -> List[re.Pattern]:
    """What a file reads of its arguments: ``args.x``, ``self.config.x``, ``getattr(args, "x")`` (or an f-string)."""
    owners, found = {"args", "cfg", "config", "options", "self", "given"}, []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", None)
            if owner in owners:
                found.append(re.escape(node.attr))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant):
                found.append(re.escape(str(name.value)))
            elif isinstance(name, ast.JoinedStr):
                parts = (re.escape(v.value) if isinstance(v, ast.Constant) else r"\w+" for v in name.values)
                found.append("".join(parts))
    return [re.compile(pattern) for pattern in found]


READS = [r for path in sorted((ROOT / "nar_plugins").rglob("*.py")) for r in reads(path.read_text(encoding="utf-8"))]


def test_the_flags_of_this_package_are_found():
    some = {"iterations", "length_head", "init_decoder_from", "length_loss_factor", "train_dtype"}
    assert some <= own_options().keys()


@pytest.mark.parametrize("option", sorted(own_options()))
def test_a_flag_is_read_by_some_code(option):
    read = old_names().get(option, option)  # an old name is read as the new one
    assert any(r.fullmatch(read) for r in READS), f"{option} of {own_options()[option]}: nobody reads it"


def test_a_flag_that_nobody_reads_would_be_found():
    assert not any(r.fullmatch("no_such_flag") for r in READS)
    assert not any(r.fullmatch("x") for r in reads("class C:\n    x: int = 1\n\ndef f(args):\n    args.x = 2\n"))
