"""examples/serve under load: no answer is lost or another text's, and what cannot be translated is one line."""

import http.client
import json
import logging

import pytest
from conftest import script
from saved import corpus, save

from nar_plugins.cli import pack
from nar_plugins.hub import from_pretrained

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


def benchmark():
    """The module benchmarks/bench_serve.py."""
    return script("benchmarks/bench_serve.py")


def post(port: int, body) -> tuple:
    """The status and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/translate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_32_clients_get_their_own_answers(tmp_path):
    texts = [f"w{i % 20} w{i % 7} w{i % 3}" for i in range(100)]
    data = corpus(tmp_path / "text", [(text, "w1") for text in texts])
    model = save(tmp_path / "cmlm.pt", "cmlm_tiny", "--max-source-positions", "12", "--max-target-positions", "40")
    pack.main([str(model), "--data", str(data), "--out", str(tmp_path / "model")])
    logging.disable(logging.NOTSET)
    wanted = [found.text for found in from_pretrained(tmp_path / "model").translate(texts)]
    assert len(set(wanted)) > 20
    bench = benchmark()
    with bench.Service(str(tmp_path / "model")) as service:
        answers = bench.load(service.port, texts, 32, 400)
        assert {i: {answer.text for answer in several} for i, several in answers.items()} == {
            i: {text} for i, text in enumerate(wanted)
        }
        assert sum(map(len, answers.values())) == 400
        assert post(service.port, {"texts": texts[:3]})[1][2]["text"] == wanted[2]
        assert post(service.port, {"texts": []}) == (200, [])
        status, found = post(service.port, {"texts": ["w1", "w1 " * 100]})
        assert status == 422 and found["detail"].startswith(
            "text 2 has 101 tokens, the models have 12 source positions"
        )
        assert post(service.port, {"texts": ["w" * 10_000]})[0] == post(service.port, {"texts": "w1"})[0] == 422
        assert post(service.port, {"texts": ["<b>", "\u05e9\u05dc\u05d5\u05dd"]})[0] == 200
