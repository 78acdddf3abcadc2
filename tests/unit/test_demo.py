"""nar-demo: its command line, and a server for this machine only, one translation at a time."""

import json
import logging
import re
import socket
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from saved import corpus, save

pytest.importorskip("starlette")
pytest.importorskip("httpx")  # starlette's test client
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient  # noqa: E402

from nar_plugins.cli import demo as nar_demo  # noqa: E402
from nar_plugins.demo import server as demo_server  # noqa: E402
from nar_plugins.demo.server import FILES, MAX_CHARACTERS, PAGE, Model, Server  # noqa: E402
from nar_plugins.hub import Translation, from_pretrained  # noqa: E402

LOCAL = "http://localhost:8000"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("demo")
    data = corpus(root / "text", [("w1", "w1")])
    models = [
        save(root / f"{name}.pt", f"{name}_tiny", "--max-source-positions", "40") for name in ("cmlm", "blockwise")
    ]
    translators = [from_pretrained(path, data, cpu=True, beam=1, retain_iter_history=True) for path in models]
    return Namespace(data=data, paths=models, translators=translators)


@pytest.fixture
def client(made):
    models = [Model(name, one, {"iterations": 4}) for name, one in zip(("<b>CMLM</b>", "heads"), made.translators)]
    with ThreadPoolExecutor(1) as thread:
        yield TestClient(Server(models, thread).app(), base_url=LOCAL)


def ask(client, text, model=0, **more):
    return client.post("/translate", json={"model": model, "text": text}, **more)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_come_with_a_strict_policy(client):
    for path, name in FILES.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.content == (PAGE / name).read_bytes()
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/no").status_code == 404 and client.get("/../server.py").status_code == 404


def test_the_page_takes_nothing_from_elsewhere_and_sets_no_html():
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\bon\w+=|style=", text
        ), path
    assert {path.name for path in PAGE.iterdir()} == {*FILES.values()}


def test_the_models_are_listed(client):
    answer = client.get("/models").json()
    assert answer == {
        "models": [
            {"name": "<b>CMLM</b>", "about": "generator mask_predict, iterations 4"},
            {"name": "heads", "about": "generator blockwise, iterations 4"},
        ],
        "max_characters": MAX_CHARACTERS,
    }


def test_an_answer_is_the_hubs_translation_with_its_passes(client, made):
    for number, translator in enumerate(made.translators):
        answer, (wanted,) = ask(client, "w1 w2 w3", number), translator.translate(["w1 w2 w3"])
        found = answer.json()
        assert answer.status_code == 200 and found["text"] == wanted.text and found["passes"] == wanted.passes
        assert found["tokens"] == len(wanted.tokens) and found["source"] == ["w1", "w2", "w3"]
        assert found["frames"][-1]["number"] == wanted.passes and 0 < found["seconds"] < 60
        assert {*found["frames"][0]["cells"][0]} == {"text", "state", "percent", "joined"}


@pytest.mark.parametrize(
    "text, status, said",
    [
        ("", 422, "the text is empty: type a sentence"),
        (" \n\u3000", 422, "the text is empty: type a sentence"),
        ("w" * 10_000, 413, "the text has 10,000 characters, the limit is 1,000: give one sentence"),
        ("w1 " * 60, 422, "the text has 61 tokens, the models have 40 source positions: split it into sentences, or "),
        ("\ud800", 422, "the text is no Unicode text (character 0: surrogates not allowed)"),
        (7, 400, "'text' must be a string"),
        (None, 400, "'text' must be a string"),
    ],
)
def test_a_text_that_cannot_be_translated_is_one_line(client, text, status, said):
    answer = client.post(  # a lone surrogate is JSON, and no UTF-8
        "/translate", content=json.dumps({"model": 0, "text": text}), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status and answer.json()["error"].startswith(said)
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "שלום עולם", "w1\nw2\tw3", "w1 🜁 ﷽", "\x00 w1"])
def test_any_other_text_is_translated(client, text):
    assert ask(client, text).status_code == 200


@pytest.mark.parametrize("model", [-1, 2, True, "0", None, 0.0])
def test_an_unknown_model_is_refused(client, model):
    answer = ask(client, "w1", model)
    assert (answer.status_code, answer.json()) == (400, {"error": "'model' must be a number from 0 to 1"})


@pytest.mark.parametrize(
    "content, status", [(b"x", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 9000, 400), (b" " * 20_000, 413)]
)
def test_a_body_that_is_no_request_is_refused(client, content, status):
    answer = client.post("/translate", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and set(answer.json()) == {"error"}


# -- who may ask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.com", "example.com:8000", "localhost.example.com", "192.168.0.1:8000", ""])
@pytest.mark.parametrize("path", ["/", "/models", "/translate"])
def test_another_host_is_refused(client, host, path):
    method = "POST" if path == "/translate" else "GET"
    answer = client.request(method, path, json={"model": 0, "text": "w1"}, headers={"host": host})
    assert answer.status_code == 400 and answer.text == "Invalid host header"
    assert "content-security-policy" in answer.headers


def test_another_origin_and_a_form_are_refused(client):
    for host in ("localhost:8000", "127.0.0.1:8000"):
        headers = {"host": host, "origin": f"http://{host}"}
        assert ask(client, "w1", headers=headers).status_code == 200
    for origin in ("http://example.com", "http://localhost:9000", "null"):
        assert ask(client, "w1", headers={"origin": origin}).status_code == 403
    answer = client.post("/translate", content='{"model": 0, "text": "w1"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_models_are_called_one_at_a_time_and_the_queue_is_bounded(client, monkeypatch):
    running, most, begun = [], [], threading.Event()
    go = threading.Event()

    def slow(translator, text):
        running.append(text)
        most.append(len(running))
        begun.set()
        assert go.wait(20)
        running.remove(text)
        return demo_server.Trace(Translation(text, 0.0, [], 0), 0.1, [], [])

    monkeypatch.setattr(demo_server, "trace", slow)
    monkeypatch.setattr(demo_server, "WAITING", 3)
    answers, read, asked = {}, [], demo_server.Server.asked
    monkeypatch.setattr(demo_server.Server, "asked", lambda self, body: read.append(body) or asked(self, body))

    def send(number):
        answers[number] = ask(client, f"text {number}", number % 2)

    with client:  # one event loop for all requests
        threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(20)
        until = time.monotonic() + 20
        while len(read) < 3 and time.monotonic() < until:  # one that is read waits before the next is read
            time.sleep(0.01)
        answer = ask(client, "one more")
        assert answer.status_code == 503 and "3 translations are waiting" in answer.json()["error"]
        go.set()
        for thread in threads:
            thread.join(20)
        assert [answers[number].json()["text"] for number in range(3)] == ["text 0", "text 1", "text 2"]
        assert most == [1, 1, 1]
        assert ask(client, "after").status_code == 200


# -- the command -------------------------------------------------------------------------------------------------------


def test_flags_become_keywords():
    assert nar_demo.keywords("--iterations 4 --cpu --bang-tau=-0.5 --rescorer 'a b.pt'") == {
        "iterations": 4,
        "cpu": True,
        "bang_tau": -0.5,
        "rescorer": "a b.pt",
    }
    assert nar_demo.keywords("") == {}


def refusal(*arguments) -> str:
    """The one line that nar-demo says."""
    with pytest.raises(SystemExit) as error:
        nar_demo.main([*map(str, arguments)])
    logging.disable(logging.NOTSET)  # main silences the log of its process
    assert "\n" not in error.value.code
    return error.value.code.removeprefix("nar-demo: ")


def test_bad_input_is_one_line_each(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, given = made.paths[0], ("--data", made.data, "--port", 0)
    assert refusal(*given) == "give a model: a folder of nar-pack, or a checkpoint"
    assert refusal("no", *given) == "no: no model no: give a folder of nar-pack, or a checkpoint"
    assert refusal(f"a={model}", f"a={model}", *given) == "two models are named a: give NAME=MODEL"
    assert refusal(model, "--flags", "4", *given) == "4: give flags such as --iterations 4"
    assert refusal(model, "--flags", "--cpu --x 'y", *given) == "--cpu --x 'y: No closing quotation"
    said = refusal(model, "--flags", "--data bin --cpu", *given)
    assert said == "--data is no flag of a model: give it outside of the flags"
    said = refusal("--system", "a", model, "--path=x", *given)
    assert said == "--path is no flag of a model: the model stands before its flags"
    said = refusal("--system", "a", model, "--iteration 4", *given)
    assert said == "there is no option iteration: did you mean iterations?"
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "encoder.onnx").touch()
    assert refusal("exported", *given).startswith("exported: exported is exported, and shows no passes: give the check")
    assert refusal(tmp_path, *given).startswith(f"{tmp_path} has no config.json: give a folder that nar-pack wrote")
    assert refusal(model, "--port", 70_000) == "--port 70000: give a number from 0 to 65535"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(model, "--port", port)
    assert said == f"--port {port}: Address already in use: give another one, or 0 for any free one"
    for package in ("uvicorn", "starlette"):
        monkeypatch.setattr(nar_demo, "find_spec", lambda name, missing=package: None if name == missing else True)
        assert refusal(model) == f"nar-demo needs {package}: pip install 'nar-plugins[demo]'"


def test_the_command_serves_its_models_on_this_machine_alone(made, monkeypatch):
    served = []

    def serve(models, thread, listener):
        served.append((models, listener.getsockname()))

    monkeypatch.setattr(nar_demo, "serve", serve)
    cmlm, heads = made.paths
    system = ("--system", "four passes", cmlm, "--iterations 4 --length-beam 2")
    nar_demo.main([*map(str, (heads, *system, "--flags", "--cpu", "--data", made.data, "--port", 0))])
    logging.disable(logging.NOTSET)
    ((models, (address, _)),) = served
    assert address == "127.0.0.1"
    assert [(model.name, model.about) for model in models] == [
        (Path(heads).name, "generator beam"),
        ("four passes", "generator mask_predict, iterations 4, length beam 2"),
    ]
    assert models[1].translator.translate(["w1 w2"])[0].passes == 4


def test_one_thread_loads_the_models_and_decodes_with_all_of_them(made, monkeypatch):
    threads, load, trace = [], nar_demo.from_pretrained, demo_server.trace

    def noted(function):
        return lambda *given, **more: threads.append(threading.current_thread()) or function(*given, **more)

    def serve(models, thread, listener):
        client = TestClient(Server(models, thread).app(), base_url=LOCAL)
        for model in (0, 1, 0):
            assert ask(client, "w1 w2", model).status_code == 200

    monkeypatch.setattr(nar_demo, "from_pretrained", noted(load))
    monkeypatch.setattr(demo_server, "trace", noted(trace))
    monkeypatch.setattr(nar_demo, "serve", serve)
    nar_demo.main([*map(str, (*made.paths, "--flags", "--cpu --beam 1", "--data", made.data, "--port", 0))])
    logging.disable(logging.NOTSET)
    assert len(threads) == 5 and len({*threads}) == 1 and threads[0] is not threading.main_thread()


def test_an_interrupted_server_ends_without_a_traceback(monkeypatch, capsys):
    import uvicorn

    def interrupted(self, sockets):
        assert sockets == [listener]
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    with nar_demo.listening(0) as listener, ThreadPoolExecutor(1) as thread:
        nar_demo.serve([], thread, listener)
        port = listener.getsockname()[1]
    assert capsys.readouterr().out == f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
