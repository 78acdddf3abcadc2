"""nar-demo: a local page on which models translate a sentence before your eyes, pass by pass, side by side.

Example:

    nar-demo model-ar model-cmlm
    nar-demo --system "AR" model-ar "--beam 1" --system "CMLM, 4 passes" model-cmlm "--iterations 4" --flags "--cpu"

A model is a folder of nar-pack, or a checkpoint with --flags "--bpe sentencepiece --sentencepiece-model spm.model" and,
where its dictionaries are not found, --data BIN. The page answers this machine only, and asks for nothing elsewhere.
"""

import shlex
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import nar_plugins  # noqa: F401  (registers the task before the flags are read)
from nar_plugins.cli.command import new_parser, one_line_errors, only_results, shield_flags
from nar_plugins.cli.curves import name_and_path
from nar_plugins.hub import from_pretrained
from nar_plugins.hub.exported import is_exported

WARM_UP = "a"  # translated before the page opens: the first sentence of a model takes longer than the others
# options that the page does not name: it names the generator, they say nothing of how a model writes, or are paths
HIDDEN = (
    "generator",
    "bpe",
    "sentencepiece_model",
    "cpu",
    "remove_bpe",
    "source_lang",
    "target_lang",
    "rescorer",
    "drafter_path",
)


def build_parser():
    parser = new_parser("nar-demo", __doc__)
    parser.add_argument("models", nargs="*", metavar="[NAME=]MODEL", help="a folder of nar-pack, or a checkpoint")
    parser.add_argument(
        "--system",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "MODEL", "FLAGS"),
        help='a model with flags of fairseq-generate of its own, such as "--iterations 4"; any number of times',
    )
    parser.add_argument("--flags", default="", help="flags of fairseq-generate for all models, in one argument")
    parser.add_argument("--data", metavar="BIN", help="folder with the dictionaries of the checkpoints")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    return parser


def keywords(flags: str) -> Dict[str, Any]:
    """Flags as keywords of ``from_pretrained``: "--iterations 4 --cpu" is ``{"iterations": 4, "cpu": True}``.

    Raises:
        ValueError: a word is neither a flag nor the value of one, or a flag is an argument of this command.
    """
    found: Dict[str, Any] = {}
    name = None
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise ValueError(f"{flags.strip()}: {error}") from error
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = plain(value) if equals else True
        elif name is not None and found[name] is True:
            found[name] = plain(word)
        else:
            raise ValueError(f"{word}: give flags such as --iterations 4")
    for name, instead in (("path", "the model stands before its flags"), ("data", "give it outside of the flags")):
        if name in found:
            raise ValueError(f"--{name} is no flag of a model: {instead}")
    return found


def plain(word: str) -> Union[int, float, str]:
    """The value of a flag: a number where it is one."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def systems(args) -> List[Tuple[str, str, Dict[str, Any]]]:
    """The name, path and options of every model.

    Raises:
        ValueError: there is none, two have one name, or a flag is no flag.
    """
    named = [(*name_and_path(argument), "") for argument in args.models]
    named = [(Path(name).name if name == path else name, path, flags) for name, path, flags in named] + args.system
    if not named:
        raise ValueError("give a model: a folder of nar-pack, or a checkpoint")
    names = [name for name, _, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are named {name}: give NAME=MODEL")
    return [(name, path, {**keywords(args.flags), **keywords(flags)}) for name, path, flags in named]


def listening(port: int) -> socket.socket:
    """A socket on this machine's loopback.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give a number from 0 to 65535")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(f"--port {port}: {error.strerror}: give another one, or 0 for any free one") from error
    return listener


def load(name: str, path: str, data: Optional[str], options: Dict[str, Any]):
    """A model of the page, warmed up."""
    from nar_plugins.demo.server import Model

    if not Path(path).is_dir() and not all(Path(part).is_file() for part in path.split(":")):
        raise ValueError(f"{name}: no model {path}: give a folder of nar-pack, or a checkpoint")
    if Path(path).is_dir() and is_exported(Path(path)):
        raise ValueError(f"{name}: {path} is exported, and shows no passes: give the checkpoint, or nar-pack's folder")
    folder = None if Path(path).is_dir() else data
    translator = from_pretrained(path, folder, **{"retain_iter_history": True, **options})
    translator.translate([WARM_UP])
    return Model(name, translator, {key: value for key, value in options.items() if key not in HIDDEN})


def check_extra() -> None:
    """Raise where starlette or uvicorn is missing."""
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise ValueError(f"nar-demo needs {package}: pip install 'nar-plugins[demo]'")


def main(argv=None) -> None:
    parser = build_parser()
    args = parser.parse_args(shield_flags(sys.argv[1:] if argv is None else argv, parser))
    with one_line_errors("nar-demo"), only_results():
        check_extra()
        chosen = systems(args)
        with listening(args.port) as listener, ThreadPoolExecutor(1, "models") as thread:
            models = [thread.submit(load, name, path, args.data, options).result() for name, path, options in chosen]
            serve(models, thread, listener)


def serve(models: List, thread: ThreadPoolExecutor, listener: socket.socket) -> None:
    """Answer until the process is interrupted.

    Args:
        thread: the one that loaded the models.
    """
    import uvicorn

    from nar_plugins.demo.server import Server

    print(f"http://127.0.0.1:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(Server(models, thread).app(), log_level="warning", lifespan="off", server_header=False)
    with suppress(KeyboardInterrupt):  # uvicorn ends, and raises it again
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
