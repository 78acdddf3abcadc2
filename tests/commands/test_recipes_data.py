"""The recipes' data: downloads with checksums, folders instead of them, and one-line errors (examples/lib.sh)."""

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl, which the downloads need")

TEXT = "".join(f"line {i} of the text\n" for i in range(2000))
VARIABLES = (
    "RAW",
    "MULTI30K",
    "SQUAD_QG",
    "NEWS",
    "ANY_TEXT",
    "MORE_TEXT",
    "MULTI30K_URL",
    "SQUAD_QG_URL",
    "BERT_URL",
    "WORKERS",
    "VENV",
)


def bash(*arguments, expect: int = 0, **variables) -> str:
    """Run bash with these arguments and variables and no other of the recipes'; what it says, both streams."""
    given = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**given, **{name: str(value) for name, value in variables.items()}},
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


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
    assert (work / "raw" / "valid.idx").exists() and not (work / "parts").exists()
    assert "no text '/nowhere'" in bash(recipe, "/nowhere", texts[1], work, expect=2, **given)


# -- the benchmark's lengths -------------------------------------------------------------------------------------------


def test_the_benchmark_knows_newstest2014s_lengths(monkeypatch, shared_data):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_one_pass

    lengths = bench_one_pass.newstest2014()
    assert (len(lengths), lengths[0], lengths[-1], sum(lengths)) == (3003, 3, 95, 73022)
    assert lengths == bench_one_pass.lengths_of(shared_data("newstest2014") / "test.en.gz")
    with pytest.raises(SystemExit, match="no gone.txt: --lengths names a text"):
        bench_one_pass.lengths_of(Path("gone.txt"))
