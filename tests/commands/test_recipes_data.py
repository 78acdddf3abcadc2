"""The recipes' data: downloads with checksums, folders instead of them, and one-line errors (examples/lib.sh)."""

import gzip
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Tuple

import pytest
from conftest import ROOT
from shell import bash

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl, which the downloads need")

TEXT = "".join(f"line {i} of the text\n" for i in range(2000))


def library(command: str, *arguments, expect: int = 0, **variables) -> str:
    """A command with the functions of lib.sh; its arguments are $1, $2, ..."""
    return bash("-c", f". examples/lib.sh; {command}", "test", *arguments, expect=expect, **variables)


def refusal(command: str, *arguments, **variables) -> str:
    """The one line that it ends with."""
    output = library(command, *arguments, expect=2, **variables)
    assert output.count("\n") == 1, output
    return output


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def listed(**texts: str) -> str:
    """A list of texts as the recipes have it; "train_en" is the file train.en."""
    lines = (f"{text.count(chr(10))} {sha256(text)} {name.replace('_', '.')}" for name, text in texts.items())
    return "\n".join(lines)


def write(path: Path, text: str) -> Path:
    """Write a text, packed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode("utf-8")))
    return path


# -- downloads ---------------------------------------------------------------------------------------------------------


class Server:
    """A local HTTP server of a folder.

    Args:
        ranges: it can go on in the middle of a file.

    Attributes:
        asked: per request, its path and its Range header.
        cut: bytes after which the next answer breaks off; None: none does.
    """

    def __init__(self, folder: Path, ranges: bool = True):
        server, self.asked, self.cut = self, [], None

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers["Range"]
                server.asked.append((self.path, wanted))
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    return self.send_error(404)
                content, start = path.read_bytes(), 0
                if wanted and ranges:
                    start = int(wanted[len("bytes=") : -1])
                    if start >= len(content):
                        return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : server.cut])
                server.cut = None

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(tmp_path):
    """A function (ranges) -> a server of tmp_path/www."""
    servers = []

    def start(**options) -> Server:
        servers.append(Server(tmp_path / "www", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


FETCH = 'fetch "$1" "$2" "$3"'


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_a_file_is_downloaded_once(tmp_path, serve, name):
    source, out = write(tmp_path / "www" / name, TEXT), tmp_path / "new" / name
    server = serve()
    for _ in range(2):
        assert library(FETCH, f"{server.url}/{name}", sha256(TEXT), out) == ""
    assert out.read_bytes() == source.read_bytes()
    assert server.asked == [(f"/{name}", None)]
    assert [path.name for path in out.parent.iterdir()] == [name]  # no part is left


def test_a_local_url_and_an_unknown_checksum(tmp_path):
    source, out = write(tmp_path / "a.txt", TEXT), tmp_path / "out.txt"
    library(FETCH, f"file://{source}", "-", out)
    assert out.read_text() == TEXT


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, serve):
    source, out = write(tmp_path / "www" / "a.txt.gz", TEXT), tmp_path / "a.txt.gz"
    server = serve()
    given = (f"{server.url}/a.txt.gz", sha256(TEXT), out)
    server.cut = 1000
    assert "no download of http" in refusal(FETCH, *given) and not out.exists()
    library(FETCH, *given)
    assert server.asked == [("/a.txt.gz", None), ("/a.txt.gz", "bytes=1000-")]
    assert out.read_bytes() == source.read_bytes()


def test_a_server_that_cannot_go_on_is_asked_from_the_start(tmp_path, serve):
    source, out = write(tmp_path / "www" / "a.txt", TEXT), tmp_path / "a.txt"
    (tmp_path / "part.a.txt").write_text(TEXT[:500])
    library(FETCH, f"{serve(ranges=False).url}/a.txt", sha256(TEXT), out)
    assert out.read_bytes() == source.read_bytes()


def test_a_part_that_is_whole_is_not_taken_on_trust(tmp_path, serve):
    write(tmp_path / "www" / "a.txt", TEXT)
    (tmp_path / "part.a.txt").write_text("x" * len(TEXT))
    server = serve()
    library(FETCH, f"{server.url}/a.txt", sha256(TEXT), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == TEXT
    assert [wanted for _, wanted in server.asked] == [f"bytes={len(TEXT)}-", None]


def test_another_text_is_refused_and_not_kept(tmp_path):
    source, out = write(tmp_path / "www" / "a.txt.gz", "another\n"), tmp_path / "a.txt.gz"
    line = refusal(FETCH, f"file://{source}", sha256(TEXT), out)
    assert sha256("another\n") in line and sha256(TEXT) in line and "RAW=FOLDER" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "www"]
    write(source, TEXT)
    library(FETCH, f"file://{source}", sha256(TEXT), out)  # the next try is not spoilt


def test_a_truncated_archive_is_refused_and_not_kept(tmp_path):
    source = write(tmp_path / "www" / "a.txt.gz", TEXT)
    source.write_bytes(source.read_bytes()[:-100])
    line = refusal(FETCH, f"file://{source}", sha256(TEXT), tmp_path / "a.txt.gz")
    assert "none, for it is truncated" in line
    assert list(tmp_path.iterdir()) == [tmp_path / "www"]


def test_without_a_network_the_folder_to_give_is_named(tmp_path):
    line = refusal(FETCH, "http://127.0.0.1:1/a.txt.gz", "-", tmp_path / "a.txt.gz")
    assert "http://127.0.0.1:1/a.txt.gz" in line and "a folder that has a.txt.gz with RAW=FOLDER" in line


def test_a_file_that_the_server_lacks_is_named(tmp_path, serve):
    (tmp_path / "www").mkdir()
    assert "404" in refusal(FETCH, f"{serve().url}/gone.txt", "-", tmp_path / "gone.txt")


def test_a_machine_without_curl_is_told_so(tmp_path):
    for name in ("dirname", "basename", "bash"):
        (tmp_path / name).symlink_to(shutil.which(name))
    assert "no curl" in refusal(FETCH, "http://127.0.0.1:1/a", "-", tmp_path / "a", PATH=tmp_path)


# -- folders -----------------------------------------------------------------------------------------------------------

COLLECT = 'collect "$1" "$2" "$3"'
EN, DE = TEXT, TEXT.replace("line", "Zeile").replace("text", "Text")
LIST = listed(train_en=EN, train_de=DE)


@pytest.mark.parametrize("end", ["", ".gz", ".xz"])
def test_a_folder_may_hold_plain_or_packed_text(tmp_path, end):
    write(tmp_path / "in" / f"train.en{end}", EN), write(tmp_path / "in" / f"train.de{end}", DE)
    library(COLLECT, tmp_path / "in", tmp_path / "out", LIST)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.de", "train.en"]
    assert (tmp_path / "out" / "train.de").read_text() == DE


def test_a_text_is_found_under_its_other_names(tmp_path):
    write(tmp_path / "in" / "test_2016.en.gz", EN)
    library(COLLECT, tmp_path / "in", tmp_path / "out", f"2000 {sha256(EN)} test.en test2016.en test_2016.en")
    assert (tmp_path / "out" / "test.en").read_text() == EN


BAD = {
    "missing": ({"train.en": EN}, "'{}' lacks train.de (plain, .gz or .xz)"),
    "truncated": ({"train.en": EN, "train.de": DE[:-500]}, "{}/train.de has 1978 lines, not 2000: truncated"),
    "longer": ({"train.en": EN + "x\n", "train.de": DE}, "{}/train.en has 2001 lines, not 2000: another text"),
    "swapped": ({"train.en": DE, "train.de": EN}, "{}/train.en holds the text of train.de: swapped or renamed"),
    "another": ({"train.en": EN.upper(), "train.de": DE}, "{}/train.en has 2000 lines, as it should, but another text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, kind):
    texts, message = BAD[kind]
    for name, text in texts.items():
        write(tmp_path / name, text)
    assert message.format(tmp_path) in refusal(COLLECT, tmp_path, tmp_path / "out", LIST)


def test_a_damaged_archive_and_a_missing_folder_are_named(tmp_path):
    path = write(tmp_path / "in" / "train.en.gz", EN)
    path.write_bytes(path.read_bytes()[:-50])
    write(tmp_path / "in" / "train.de", DE)
    line = refusal(COLLECT, tmp_path / "in", tmp_path / "out", LIST)
    assert f"{path} is truncated or damaged" in line
    assert "no folder '/nowhere'" in refusal(COLLECT, "/nowhere", tmp_path / "out", LIST)


def test_any_text_may_be_taken_but_its_sides_must_be_parallel(tmp_path):
    write(tmp_path / "train.en", "a\nb\n"), write(tmp_path / "train.de", "c\n")
    library(COLLECT, tmp_path, tmp_path / "out", LIST, ANY_TEXT=1)
    line = refusal('parallel "$1" "$2"', tmp_path / "out" / "train.en", tmp_path / "out" / "train.de")
    assert "train.en has 2 lines and" in line and "train.de has 1: they are not parallel" in line


# -- the recipes -------------------------------------------------------------------------------------------------------

STOPPED = 7  # of a Python that stands in for the environment's: the recipe ends after its data


@pytest.fixture
def no_python(tmp_path):
    """An environment in which Python does nothing but end."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {STOPPED}\n")
    python.chmod(0o755)
    return tmp_path / "venv"


DOWNLOADED = ["wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "tatoeba_en_de"]


@pytest.mark.parametrize("recipe", DOWNLOADED)
def test_a_recipe_without_a_network_names_the_archive_and_the_variable(tmp_path, recipe, no_python):
    write(tmp_path / "bin" / "curl", "#!/bin/sh\necho 'curl: (6) Could not resolve host' >&2\nexit 6\n").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    output = bash(f"examples/{recipe}/prepare.sh", "", tmp_path / "work", VENV=no_python, PATH=path, expect=2)
    assert output.count("\n") == 1 and "no download of https://" in output and "RAW=FOLDER" in output


@pytest.mark.parametrize("recipe", ["multi30k/prepare.sh", "squad_qg/prepare.sh", "classification/prepare.sh"])
def test_a_recipe_without_a_network_names_the_variable(tmp_path, recipe, no_python):
    urls = {"MULTI30K_URL": "http://127.0.0.1:1", "SQUAD_QG_URL": "http://127.0.0.1:1"}
    output = bash(f"examples/{recipe}", "", tmp_path / "work", VENV=no_python, expect=2, **urls)
    assert output.count("\n") == 1 and "RAW=FOLDER" in output


VARIABLE_OF = {"multi30k": "MULTI30K", "squad_qg": "SQUAD_QG", "classification": "SQUAD_QG"}


@pytest.mark.parametrize("recipe", VARIABLE_OF)
def test_a_folder_comes_by_either_variable_or_as_an_argument(tmp_path, recipe, no_python):
    work, empty = tmp_path / "work", tmp_path / "empty"
    empty.mkdir()
    script = f"examples/{recipe}/prepare.sh"
    ways = [{"RAW": empty}, {VARIABLE_OF[recipe]: empty}]
    outputs = [bash(script, "", work, VENV=no_python, expect=2, **way) for way in ways]
    if recipe != "classification":  # whose argument is a folder of labelled text
        outputs.append(bash(script, empty, work, VENV=no_python, expect=2))
    for output in outputs:
        assert output.count("\n") == 1 and f"'{empty}' lacks train." in output


def test_multi30k_is_downloaded(tmp_path, shared_data, serve, no_python):
    (tmp_path / "www").mkdir()
    names = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
    for path in shared_data("multi30k").iterdir():
        split, rest = path.name.split(".", 1)
        shutil.copy(path, tmp_path / "www" / f"{names[split]}.{rest}")
    work, server = tmp_path / "work", serve()
    bash("examples/multi30k/prepare.sh", "", work, VENV=no_python, MULTI30K_URL=server.url, expect=STOPPED)
    assert len(server.asked) == 6
    assert [sum(1 for _ in open(work / f"{split}.de", encoding="utf-8")) for split in names] == [29000, 1014, 1000]


def test_squad_is_cut_from_the_published_parts(tmp_path, shared_data, serve):
    text = {
        name.name[:-3]: lzma.open(name, "rt", encoding="utf-8", newline="\n").read().split("\n")[:-1]
        for name in shared_data("squad_qg").iterdir()
    }
    between = ["what is in none of the three ?"] * 70
    for side, name, blank in (("sentence", "src", " "), ("question", "tgt", "")):
        train, valid, test = (text[f"{split}.{side}"] for split in ("train", "valid", "test"))
        dev = train[11877:] + between + valid + test
        for part, lines in (("test", train[:11877]), ("dev", dev)):
            write(tmp_path / "www" / f"{name}-{part}.txt", "".join(f"{line}{blank}\n" for line in lines))
    out, server = tmp_path / "out", serve()
    bash("examples/squad_qg/data.sh", out, SQUAD_QG_URL=server.url)
    bash("examples/squad_qg/data.sh", tmp_path / "same", tmp_path / "www")
    assert len(server.asked) == 4
    for name, lines in text.items():
        whole = "".join(f"{line}\n" for line in lines)
        assert (out / name).read_text(encoding="utf-8") == (tmp_path / "same" / name).read_text("utf-8") == whole
    write(tmp_path / "www" / "src-dev.txt", "short\n")
    output = bash("examples/squad_qg/data.sh", out, tmp_path / "www", expect=2)
    assert "src-dev.txt has 1 lines, not 10570: truncated" in output and output.count("\n") == 1


@pytest.fixture
def trained(tmp_path):
    """A work folder of Multi30k with empty checkpoints, and an environment whose commands do nothing: Python copies its
    input, and has no network for sacreBLEU.
    """
    for model in ("ar", "kd-frozen", "kd-block"):
        write(tmp_path / "work" / model / "checkpoint_last.pt", "")
    python = '#!/bin/sh\ncase "$*" in *sacrebleu*) echo "no network" >&2; exit 1;; *spm.py*) cat;; esac\n'
    for name, script in (("python", python), ("fairseq-preprocess", "#!/bin/sh\n"), ("nar-bench", "#!/bin/sh\n")):
        command = write(tmp_path / "venv" / "bin" / name, script)
        command.chmod(0o755)
    return tmp_path


def test_newstest2014_comes_from_a_folder_or_is_left_out_aloud(trained):
    def recipe(expect: int = 0, **given) -> str:
        return bash("examples/multi30k/blockwise.sh", trained / "work", VENV=trained / "venv", expect=expect, **given)

    assert "newstest2014 is left out" in recipe() and "(no network): name a folder with NEWS=FOLDER" in recipe()
    news = trained / "news"
    write(news / "test.en.gz", "a\n" * 3003), write(news / "test.de", "b\n" * 3002)
    assert f"{news}/test.de has 3002 lines, not 3003: truncated" in recipe(NEWS=news, expect=2)
    write(news / "test.de", "b\n" * 3003)
    assert "left out" not in recipe(NEWS=news)
    assert (trained / "work" / "news" / "test.sp.de").read_text() == "b\n" * 3003


def test_raw_text_is_tokenised_in_parts_and_put_together_in_order(tmp_path):
    """With commands that do little: those of the environment have tests of their own."""
    commands = {
        "nar-convert": "exit 0",
        "nar-wordpiece": "tr a-z A-Z",
        "fairseq-preprocess": 'while [ "$1" != --destdir ]; do shift; done; mkdir "$2"; touch "$2/valid.idx"',
    }
    for name, script in commands.items():
        write(tmp_path / "venv" / "bin" / name, f"#!/bin/sh\n{script}\n").chmod(0o755)
    train = "".join(f"a{i} b\n\n" for i in range(500))
    texts = [write(tmp_path / "train.txt.gz", train), write(tmp_path / "valid.txt", "a b\n" * 9)]
    folder, work = write(tmp_path / "in" / "vocab.txt", "[PAD]\n[UNK]\n").parent, tmp_path / "work"
    recipe, given = "examples/bang_pretraining/prepare.sh", {"VENV": tmp_path / "venv", "WORKERS": 3}
    output = bash(recipe, *texts, work, RAW=folder, expect=2, **given)
    assert output.count("\n") == 1 and "vocab.txt has 2 lines, not 30522" in output
    assert "RAW=FOLDER" in bash(recipe, *texts, work, BERT_URL="http://127.0.0.1:1", expect=2, **given)
    bash(recipe, *texts, work, RAW=folder, ANY_TEXT=1, **given)
    assert (work / "train.wp").read_text() == train.upper()
    assert (work / "raw" / "valid.idx").exists() and not list(work.glob("*.parts"))
    assert "no text '/nowhere'" in bash(recipe, "/nowhere", texts[1], work, expect=2, **given)


# -- archives ----------------------------------------------------------------------------------------------------------


def pack(path: Path, members: dict) -> Path:
    """A .tgz or .zip with these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            content = text.encode("utf-8")
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def wmt14(folder: Path) -> Path:
    """A folder with WMT14's archives, two lines each, and short evaluation sets."""
    names = {
        "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
        "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
        "training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
    }
    for archive, member in names.items():
        pack(folder / archive, {f"{member}.{side}": f"{member} {side}\n\u2028\n" for side in ("en", "de")})
    for split, lines in (("valid", 3000), ("test", 3003)):
        for side in ("en", "de"):
            write(folder / f"{split}.{side}.gz", f"{split} {side}\n" * lines)
    return folder


def test_wmt14_is_put_together_from_archives(tmp_path, no_python):
    folder, work = wmt14(tmp_path / "in"), tmp_path / "work"
    given = (folder, work)
    line = bash("examples/wmt14_en_de/prepare.sh", *given, VENV=no_python, expect=2)
    assert "europarl-v7.tgz's training/europarl-v7.de-en.en has 2 lines, not 1920209: truncated" in line
    assert line.count("\n") == 1
    bash("examples/wmt14_en_de/prepare.sh", *given, VENV=no_python, ANY_TEXT=1, expect=1)
    expected = [f"{name} de" for name in ("training/europarl-v7.de-en", "commoncrawl.de-en")]
    assert (work / "train.de").read_text(encoding="utf-8").split("\n")[0:4:2] == expected
    assert (work / "train.de").read_text(encoding="utf-8").count("\n") == 6
    assert (work / "test.en").read_text() == "test en\n" * 3003
    before = (work / "train.de").stat().st_mtime_ns
    bash("examples/wmt14_en_de/prepare.sh", *given, VENV=no_python, ANY_TEXT=1, expect=1)
    assert (work / "train.de").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["missing", "truncated", "other", "short", "unequal", "one side"])
def test_what_is_wrong_with_archives_or_texts_is_said_in_one_line(tmp_path, no_python, kind):
    folder, variables = wmt14(tmp_path / "in"), {"VENV": no_python, "ANY_TEXT": 1}
    crawl = folder / "training-parallel-commoncrawl.tgz"
    message = f"{crawl} is truncated or damaged, or has no commoncrawl.de-en.en"
    if kind == "missing":
        crawl.unlink()
        message = f"no {crawl}: '{folder}' has neither it nor train.en and train.de"
    elif kind == "truncated":
        crawl.write_bytes(crawl.read_bytes()[:-40])
    elif kind == "other":
        pack(crawl, {"x": "y\n"})
    elif kind == "short":
        write(folder / "test.de.gz", "a\n" * 2737)
        variables, message = {"VENV": no_python}, f"{folder}/test.de.gz has 2737 lines, not 3003: truncated"
        write(folder / "train.en", "a\n"), write(folder / "train.de", "a\n")
    elif kind == "unequal":
        write(folder / "train.en", "a\n"), write(folder / "train.de", "a\nb\n")
        message = "train.en has 1 lines and "
    else:
        write(folder / "train.en", "a\n")
        message = f"'{folder}' lacks train.de"
    output = bash("examples/wmt14_en_de/prepare.sh", folder, tmp_path / "work", expect=2, **variables)
    assert message in output and output.count("\n") == 1


def test_a_test_set_that_sacrebleu_cannot_download_is_named(tmp_path):
    write(tmp_path / "venv" / "bin" / "python", "#!/bin/sh\necho 'no network' >&2\nexit 1\n").chmod(0o755)
    folder = wmt14(tmp_path / "in")
    (folder / "test.en.gz").unlink()
    (folder / "test.de.gz").unlink()
    variables = {"VENV": tmp_path / "venv", "ANY_TEXT": 1}
    output = bash("examples/wmt14_en_de/prepare.sh", folder, tmp_path / "work", expect=2, **variables)
    assert "sacreBLEU cannot download wmt14/full (no network): name a folder that has test.en and test.de" in output


def test_wmt16_has_one_form_of_romanian(tmp_path):
    folder, work = tmp_path / "in", tmp_path / "work"
    for archive, member in (
        ("training-parallel-ep-v8.tgz", "training-parallel-ep-v8/europarl-v8.ro-en"),
        ("en-ro.txt.zip", "SETIMES.en-ro"),
    ):
        pack(folder / archive, {f"{member}.ro": "\u0163ar\u0103 \u015fi\n", f"{member}.en": "a country and\n"})
    for split in ("valid", "test"):
        write(folder / f"{split}.ro", "\u021b\n" * 1999), write(folder / f"{split}.en", "a\n" * 1999)
    python = f'#!/bin/sh\ncase "$*" in *tokenise*) exit {STOPPED};; esac\nexec {sys.executable} "$@"\n'
    write(tmp_path / "venv" / "bin" / "python", python).chmod(0o755)
    prepare = ("examples/wmt16_en_ro/prepare.sh", folder)
    bash(*prepare, work, VENV=tmp_path / "venv", WORKERS=1, expect=1)
    assert (work / "train.ro").read_text(encoding="utf-8") == "\u021bar\u0103 \u0219i\n" * 2
    other = bash(*prepare, work, VENV=tmp_path / "venv", DIACRITICS="strip", expect=2)
    assert "was prepared as 'bpe diacritics=keep', not 'bpe diacritics=strip': name another WORK" in other
    bash(*prepare, tmp_path / "strip", VENV=tmp_path / "venv", WORKERS=1, DIACRITICS="strip", expect=1)
    assert (tmp_path / "strip" / "train.ro").read_text(encoding="utf-8") == "tara si\n" * 2
    assert (tmp_path / "strip" / "test.ro").read_text(encoding="utf-8") == "t\n" * 1999


def test_iwslt14_is_taken_out_of_its_archive(tmp_path):
    train = "<url>http://x</url>\n<keywords>k</keywords>\n<talkid>1</talkid>\n<title>Title {0}</title>\n" + "".join(
        f" Line {i} {{0}}.\n" for i in range(45)
    )
    members = {f"de-en/train.tags.de-en.{side}": train.format(side) for side in ("de", "en")}
    members["de-en/train.tags.de-en.en"] = members["de-en/train.tags.de-en.en"].replace("Line 3 ", "3 " * 200)
    for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
        for side in ("de", "en"):
            text = f'<doc>\n<seg id="1"> {name} {side}, it\u2019s </seg>\n<seg id="2">two</seg>\n</doc>\n'
            members[f"de-en/IWSLT14.{name}.de-en.{side}.xml"] = text
    pack(tmp_path / "in" / "de-en.tgz", members)
    python = (
        f'#!/bin/sh\ncase "$*" in *--lower*) exit {STOPPED};; *tokenise*) cat;; *) exec {sys.executable} "$@";; esac\n'
    )
    write(tmp_path / "venv" / "bin" / "python", python).chmod(0o755)
    prepare, work = ("examples/iwslt14_de_en/prepare.sh", tmp_path / "in"), tmp_path / "work"
    line = bash(*prepare, work, VENV=tmp_path / "venv", WORKERS=1, expect=2).splitlines()[-1]
    assert "de-en.tgz's test sets has 10 lines, not 6750: truncated" in line
    bash(*prepare, work, VENV=tmp_path / "venv", WORKERS=1, ANY_TEXT=1, expect=1)
    clean = ["Title de", *(f" Line {i} de." for i in range(45) if i != 3)]
    assert (work / "valid.de").read_text().splitlines() == [clean[22]]
    assert (work / "train.de").read_text().splitlines() == [line for i, line in enumerate(clean) if i % 23 != 22]
    test = (work / "test.en").read_text(encoding="utf-8").splitlines()
    assert test[:3] == ["TED.dev2010 en, it's", "two", "TEDX.dev2012 en, it's"] and len(test) == 10


def test_tatoebas_split_has_no_sentence_twice(tmp_path):
    text = "".join(
        f"Sentence {i // 3}.\tSatz {i // 2}.\tCC-BY\n" if i % 10 else f"Go.\tGeh {i}!\n" for i in range(3000)
    )
    pack(tmp_path / "www" / "deu-eng.zip", {"deu.txt": text})
    path = write(tmp_path / "deu.txt", text)
    script = ROOT / "examples" / "tatoeba_en_de" / "split.py"
    done = subprocess.run([sys.executable, script, path, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sides = {
        (split, side): (tmp_path / f"{split}.{side}").read_text(encoding="utf-8").splitlines()
        for split in ("train", "valid", "test")
        for side in ("en", "de")
    }
    for side in ("en", "de"):
        parts = [set(sides[split, side]) for split in ("train", "valid", "test")]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    pairs = [pair for split in ("train", "valid", "test") for pair in zip(sides[split, "en"], sides[split, "de"])]
    assert sorted(pairs) == sorted({tuple(line.split("\t")[:2]) for line in text.splitlines()})
    assert "Go." in sides["train", "en"]
    write(path, "no tab\n")
    done = subprocess.run([sys.executable, script, path, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and f"split.py: {path}, line 1: no English and German" in done.stderr


# -- steps of text -----------------------------------------------------------------------------------------------------


def prepare_text(*arguments, given: str = "", expect: int = 0):
    """scripts/text.py: what it prints, or its message."""
    return run_script("text.py", *arguments, given=given.encode("utf-8"), expect=expect)[1 if expect else 0]


def run_script(name: str, *arguments, given: bytes = b"", expect: int = 0) -> Tuple[str, str]:
    """A script of scripts/: what it prints, and its messages."""
    script = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    done = subprocess.run(script, input=given, capture_output=True)
    assert done.returncode == expect, done.stderr.decode()
    return done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


def test_text_is_tokenised_as_moses_does():
    pytest.importorskip("sacremoses")
    given = "\u201eHerr M\u00fcller\u201c kam z.B. am 3. Mai,\u2028it's well-known.\n\n"
    plain = prepare_text("tokenise", "--language", "de", given=given)
    assert plain == "\u201e Herr M\u00fcller &quot; kam z.B. am 3. Mai , it &apos; s well-known .\n\n".replace(
        "&quot;", "\u201c"
    )
    flags = ("--normalise", "--split-hyphens", "--lower")
    assert prepare_text("tokenise", "--language", "de", *flags, given=given) == (
        "&quot; herr m\u00fcller &quot; kam z.b. am 3. mai , it &apos; s well @-@ known .\n\n"
    )


def test_pieces_are_learnt_and_applied(tmp_path):
    pytest.importorskip("subword_nmt")
    text = write(tmp_path / "train.tok.en", "low lower lowest\u2028newer wider\n" * 20)
    codes = write(tmp_path / "codes", prepare_text("learn-bpe", "--merges", 4, text))
    out = prepare_text("bpe", "--codes", codes, given="lower lowest\u2028\n\n")
    assert out.count("\n") == 2 and out.replace("@@ ", "") == "lower lowest\u2028\n\n" and "@@ " in out


def test_unclean_pairs_are_left_out(tmp_path):
    first = ["a b c", "", "a " * 6, "a b c d", "x"]
    second = ["a b", "a", "a " * 6, "a", "y"]
    for name, lines in (("t.en", first), ("t.de", second), ("raw.en", "12345"), ("raw.de", "12345")):
        write(tmp_path / name, "".join(f"{line}\n" for line in lines))
    judge = ("clean", "--judge", tmp_path / "t.en", tmp_path / "t.de", "--longest", 5, "--ratio", 1.5)
    pairs = [tmp_path / name for name in ("raw.en", "out.en", "raw.de", "out.de")]
    assert "2 of 5 pairs are kept" in prepare_text(*judge, *pairs)
    assert (tmp_path / "out.en").read_text() == (tmp_path / "out.de").read_text() == "1\n5\n"
    write(tmp_path / "raw.de", "1\n")
    message = prepare_text(*judge, *pairs, expect=1)
    assert f"{tmp_path}/raw.de has 1 lines: they are not parallel" in message and message.count("\n") == 1
    assert "clean takes pairs of files" in prepare_text(*judge, *pairs[:3], expect=2)
    for name in ("t.en", "t.de", "raw.en", "raw.de"):
        write(tmp_path / name, "")
    names = f"{tmp_path}/t.en, {tmp_path}/t.de"
    assert f"text.py: {names}: of 0 pairs none is kept: are" in prepare_text(*judge, *pairs, expect=1)
    assert (tmp_path / "out.en").read_text() == "1\n5\n"  # of the run before


def test_a_line_of_windows_ends_as_any_other():
    pytest.importorskip("sacremoses")
    given = "\ufeffAb\rCat.\r\n\r\nD\r\n"
    assert prepare_text("lower", given=given) == "ab\rcat.\n\nd\n"
    assert prepare_text("romanian", given=given) == "Ab\rCat.\n\nD\n"
    assert prepare_text("tokenise", "--language", "en", given=given) == "Ab Cat .\n\nD\n"


def test_a_language_without_rules_of_moses_is_said():
    pytest.importorskip("sacremoses")
    out, said = run_script("text.py", "tokenise", "--language", "xx", given=b"a.\n")
    assert out == "a .\n" and said.count("\n") == 1
    assert said.startswith("text.py: warning: --language xx: Moses has no rules for it, and English's are used (it has")
    assert run_script("text.py", "tokenise", "--language", "ko", given=b"a.\n") == ("a .\n", "")


@pytest.mark.parametrize(
    "text, merges, said",
    [
        (b"", 4, "text: no word of two characters, so that there is nothing to merge"),
        (b"a b\r\n", 4, "text: no word of two characters, so that there is nothing to merge"),
        (b"ab\n", 0, "--merges 0: at least 1"),
        (b"ab\n\xff\n", 4, "text is not UTF-8: convert it first, for example with iconv"),
    ],
)
def test_text_that_has_no_pieces_is_one_line(tmp_path, text, merges, said):
    pytest.importorskip("subword_nmt")
    (tmp_path / "text").write_bytes(text)
    message = prepare_text("learn-bpe", "--merges", merges, tmp_path / "text", expect=1)
    assert message.replace(f"{tmp_path}/", "") == f"text.py: {said}\n"


@pytest.mark.parametrize(
    "codes, line", [("", 1), ("#version: 0.2\n", 2), ("#version: 0.2\na b</w>\nab\n", 3), ("a b\nabc\n", 2)]
)
def test_codes_that_are_none_are_one_line(tmp_path, codes, line):
    pytest.importorskip("subword_nmt")
    write(tmp_path / "codes", codes)
    message = prepare_text("bpe", "--codes", tmp_path / "codes", given="ab\n", expect=1)
    said = "no two sub-words: --codes takes what learn-bpe prints"
    assert message == f"text.py: {tmp_path}/codes, line {line}: {said}\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("train", "--model", "m"), "train needs a file of raw text"),
        (("train", "--model", "m", "/dev/null"), "/dev/null: no text to train on"),
        (("train", "--model", "m", "no file"), "no file: No such file or directory"),
        (("train", "--model", "no/m", "/dev/null"), "--model no/m: no folder 'no'"),
        (("encode", "--model", "no"), 'NOT_FOUND: "no.model": No such file or directory'),
    ],
)
def test_what_sentencepiece_cannot_use_is_one_line(arguments, said):
    pytest.importorskip("sentencepiece")
    message = run_script("spm.py", *arguments, expect=1)[1].strip()
    # sentencepiece 0.2.2 ends its own message with the system's number
    assert message.replace(" Error #2", "") == f"spm.py: {said}"


@pytest.mark.parametrize(
    "job", [("tokenise", "--language", "de"), ("bpe", "--codes", "x"), ("learn-bpe", "--merges", "1", "x")]
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, job):
    for package in ("sacremoses", "subword_nmt"):
        write(tmp_path / package / "__init__.py", f"raise ImportError('gone', name='{package}')\n")
    script = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}]; sys.argv[0] = 'text.py'; "
    script += f"runpy.run_path({str(ROOT / 'scripts' / 'text.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script, *job], input="a\n", capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "pip install -e '.[recipes]', or take PIECES=spm" in done.stderr


# -- the benchmark's lengths -------------------------------------------------------------------------------------------


def test_the_benchmark_knows_newstest2014s_lengths(monkeypatch, shared_data):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_one_pass

    lengths = bench_one_pass.newstest2014()
    assert (len(lengths), lengths[0], lengths[-1], sum(lengths)) == (3003, 3, 95, 73022)
    assert lengths == bench_one_pass.lengths_of(shared_data("newstest2014") / "test.en.gz")
    with pytest.raises(SystemExit, match="no gone.txt: --lengths names a text"):
        bench_one_pass.lengths_of(Path("gone.txt"))
