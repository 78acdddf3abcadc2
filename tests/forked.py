"""Commands that start in a moment instead of four seconds: a server that has imported PyTorch and fairseq forks for
each. What runs is the command itself, in a process of its own, with the caller's folder, streams and environment.

Tests that kill a command start a real one: here only the caller would die.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Iterator

import torch

FAIRSEQ = ("train", "generate", "interactive", "preprocess", "validate")
OURS = ("align", "average", "bench", "distill", "merge", "pack", "score")
COMMANDS = ("python", *(f"fairseq-{name}" for name in FAIRSEQ), *(f"nar-{name}" for name in OURS))
IMPORTED = (
    "sentencepiece",
    "sacremoses",
    "subword_nmt.apply_bpe",
    "subword_nmt.learn_bpe",
)  # by scripts, where installed
CLIENT = f"""#!{sys.executable} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.path.dirname(os.path.abspath(__file__)), "server"))
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
asked = [os.path.basename(__file__), sys.argv[1:], os.getcwd(), dict(os.environ)]
server.sendmsg([json.dumps(asked).encode() + b"\\n"], streams)
sys.exit(int(server.recv(16) or 1))
"""


def run_script() -> None:
    """What the interpreter would do with a script, with - and one on the standard input, or with -c and one itself, and
    its arguments.
    """
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-c":
        return exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
    if sys.argv[0] == "-":
        return exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


def main_of(command: str):
    """The function that a console script calls."""
    if command == "python":
        return run_script
    kind, name = command.split("-", 1)
    if kind == "fairseq":
        return importlib.import_module(f"fairseq_cli.{name}").cli_main
    return importlib.import_module(f"nar_plugins.cli.{name}").main


def run(command: str, arguments, folder: str, environment: dict) -> int:
    """The command in this process; its exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path += [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "OMP_NUM_THREADS" in environment:  # the server has read its own
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [command, *arguments]
    try:
        main_of(command)()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001  (printed, as the interpreter does)
        traceback.print_exc()
        return 1
    return 0


def warm_up() -> None:
    """What every command would do again: the imports, and Hydra's parsing of fairseq's defaults."""
    for name in COMMANDS:
        main_of(name)
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import compositions  # after fairseq's commands: the first of them sets the format of the logs
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    compositions.remember()
    model = ("--arch", "cmlm_tiny", "--criterion", "nar_loss", "--optimizer", "adam")
    for parser, flags in ((options.get_training_parser, model), (options.get_interactive_generation_parser, ())):
        arguments = options.parse_args_and_arch(parser(), ["data", "--task", "nar_translation", *flags])
        convert_namespace_to_omegaconf(arguments)


def serve(path: str) -> None:
    """Fork for every command that a client names, and give its exit status back."""
    warm_up()
    gc.freeze()  # a child that collected the million objects would copy them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:  # one process answers a client, so that the commands of a pipe run side by side
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(client)
            os._exit(0)
        client.close()


def answer(client: socket.socket) -> None:
    """Run the command of one client, and give its exit status back."""
    streams = array.array("i")
    message, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(ancillary[0][2])
    while not message.endswith(b"\n"):
        message += client.recv(1 << 20)
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        client.close()
        status = run(*json.loads(message))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for stream in streams:
        os.close(stream)
    client.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


@contextlib.contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """A folder like a virtual environment's, for a recipe's VENV, while its server runs."""
    (folder / "bin").mkdir(parents=True)
    for name in COMMANDS:
        (folder / "bin" / name).write_text(CLIENT)
        (folder / "bin" / name).chmod(0o755)
    socket_path = folder / "bin" / "server"
    server = subprocess.Popen([sys.executable, __file__, str(socket_path)], stdin=subprocess.DEVNULL)
    try:
        while not socket_path.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the server of commands ended with {server.returncode}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
        yield folder
    finally:
        server.kill()
        server.wait()


@functools.lru_cache(maxsize=None)
def commands() -> Path:
    """The folder of the commands. Their server runs until this process ends."""
    ends = contextlib.ExitStack()
    atexit.register(ends.close)
    folder = Path(tempfile.mkdtemp())
    ends.callback(shutil.rmtree, folder)
    return ends.enter_context(environment(folder / "environment")) / "bin"


def program(command: str) -> Path:
    """What to run for a console script: the forked one, or the real one where there is none."""
    return commands() / command if command in COMMANDS else Path(sys.executable).parent / command


if __name__ == "__main__":
    serve(sys.argv[1])
