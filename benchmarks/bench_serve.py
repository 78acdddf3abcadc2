"""Load test of examples/serve on this machine: requests per second, latencies, lost and mixed-up answers, memory.

    python benchmarks/bench_serve.py MODEL TEXTS [--clients 32] [--requests 2000]

MODEL is a folder of nar-pack, TEXTS a file with a text per line. Each request has one text; the expected answers are
those of a single thread, computed before. Needs nar-plugins[serve].
"""

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import torch

from nar_plugins.hub import from_pretrained

APP = Path(__file__).resolve().parent.parent / "examples" / "serve"


class Answer(NamedTuple):
    seconds: float
    text: Optional[str]  # None: there was none


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", type=Path, metavar="TEXTS")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    texts = args.texts.read_text(encoding="utf-8").split("\n")[:-1]
    wanted = [found.text for found in from_pretrained(args.model).translate(texts, batch_size=1)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print("| clients | requests | requests/s | p50, ms | p99, ms | lost | differ | of another text | memory, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with Service(args.model) as service:
        for clients, requests in ((1, max(1, args.requests // 10)), (args.clients, args.requests)):
            print(row(service, texts, wanted, clients, requests), flush=True)


class Service:
    """The service in a process of its own, on a free port."""

    def __init__(self, model: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(APP), "app:app", "--log-level", "warning"]
        environment = {**os.environ, "MODEL": model}
        self.process = subprocess.Popen([*command, "--port", str(self.port)], env=environment)

    def __enter__(self) -> "Service":
        deadline = time.monotonic() + 120
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        self.__exit__()
        raise SystemExit("bench_serve: the service did not start; its message is above")

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait()

    def memory(self) -> Optional[int]:
        """Resident bytes of the service; None where the system does not say."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def client(port: int, texts: List[str]) -> List[Answer]:
    """The answers to requests of one text each, over one connection."""
    connection, answers = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for text in texts:
        start, found = time.perf_counter(), None
        try:
            body = json.dumps({"texts": [text]}).encode()
            connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            found = json.loads(content)[0]["text"] if response.status == 200 else None
        except (OSError, http.client.HTTPException):  # counted as lost; the next request connects again
            connection.close()
        answers.append(Answer(time.perf_counter() - start, found))
    return answers


def load(port: int, texts: List[str], clients: int, requests: int) -> Dict[int, List[Answer]]:
    """Requests spread over clients that send at the same time: number of the text -> its answers."""
    parts = [range(number, requests, clients) for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(client, port, [texts[i % len(texts)] for i in part]) for part in parts]
        answers: Dict[int, List[Answer]] = {}
        for part, job in zip(parts, jobs):
            for i, answer in zip(part, job.result()):
                answers.setdefault(i % len(texts), []).append(answer)
    return answers


def row(service: Service, texts: List[str], wanted: List[str], clients: int, requests: int) -> str:
    """One row of the table."""
    before, start = service.memory(), time.perf_counter()
    answers = load(service.port, texts, clients, requests)
    seconds, after = time.perf_counter() - start, service.memory()
    pairs = [(wanted[i], answer) for i, several in answers.items() for answer in several]
    lost = sum(answer.text is None for _, answer in pairs)
    differ = [answer.text for right, answer in pairs if answer.text not in (None, right)]
    mixed = sum(text in wanted for text in differ)
    latencies = sorted(1000 * answer.seconds for _, answer in pairs)
    p50, p99 = statistics.median(latencies), latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))]
    memory = "-" if before is None else f"{before / 1e6:.0f} to {after / 1e6:.0f}"
    cells = [clients, len(pairs), f"{len(pairs) / seconds:.1f}", f"{p50:.0f}", f"{p99:.0f}"]
    return "| " + " | ".join(map(str, [*cells, lost, len(differ), mixed, memory])) + " |"


if __name__ == "__main__":
    main()
