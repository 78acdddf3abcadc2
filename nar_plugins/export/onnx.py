"""``nar-export onnx``: a checkpoint as a folder that ONNX Runtime runs (``runtime.py``), checked against PyTorch."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from fairseq import utils
from torch import Tensor
from torch.export import Dim

from nar_plugins.data.whole_file import folder_written_whole
from nar_plugins.export import runtime
from nar_plugins.export.check import Agreement, compare
from nar_plugins.export.graphs import Encoder, OnePass, Pass, traceable
from nar_plugins.export.int8 import Quantised, quantise
from nar_plugins.export.options import baked, check_exportable
from nar_plugins.generators import registry
from nar_plugins.generators.base import banned_on_canvas
from nar_plugins.measure.systems import System, in_one_line

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PYTORCH = "2.8"  # the first whose exporter follows these models
CHECKED = 64  # sentences


class Exported(NamedTuple):
    """What was made.

    Attributes:
        files: the sizes of the files in bytes. agreement: with PyTorch. quantised: of every graph, with ``int8``.
    """

    files: Dict[str, int]
    agreement: Agreement
    quantised: Dict[str, Quantised]


class Graph(NamedTuple):
    """A graph to be made.

    Attributes:
        module: of ``graphs.py``. example: its arguments, a padded batch. shapes: of every argument, its dimensions that
            vary. inputs, outputs: names.
    """

    module: nn.Module
    example: Tuple[Tensor, ...]
    shapes: tuple
    inputs: List[str]
    outputs: List[str]


def export(checkpoint: str, data: str, out: Path, flags: Sequence[str] = (), int8: bool = False) -> Exported:
    """Export a checkpoint.

    Args:
        data: folder of binarised data: its dictionaries, and the sentences of the check.
        out: the folder to make.
        flags: of ``fairseq-generate``; those that the graphs can hold.
        int8: quantise the linear layers.

    Raises:
        ValueError: a package is missing, the folder exists, an option or the model cannot be exported, or the exported
            model does not output what PyTorch does.
    """
    check_packages()
    if out.exists() or out.is_symlink():
        raise ValueError(f"--out {out} exists: name a new folder, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: no folder '{out.parent}'")
    if len(utils.split_paths(checkpoint)) > 1:
        raise ValueError(f"{checkpoint}: an ensemble cannot be exported; export one checkpoint")
    check_exportable(System.parse(checkpoint, data, flags))
    system = System("PyTorch", checkpoint, data, [*flags, "--cpu"])
    (model,) = system.models
    check_model(model)
    graphs, config = described(model, system)
    with folder_written_whole(out) as folder:
        quantised = {}
        for name, graph in graphs.items():
            write_graph(graph, folder / f"{name}.onnx")
            if int8:
                quantised[name] = quantise(folder / f"{name}.onnx")
        write_rest(folder, {**config, "int8": int8}, system)
        agreement = compare(system, runtime.OnnxTranslator(folder, torch.get_num_threads()), CHECKED, exact=not int8)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Exported(files, agreement, quantised)


def check_packages() -> None:
    """Raise where a package of the extra is missing, or PyTorch is too old."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed: pip install 'nar-plugins[onnx]'")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < tuple(map(int, PYTORCH.split("."))):
        raise ValueError(f"PyTorch {torch.__version__}: an export needs {PYTORCH} or later")


def check_model(model: nn.Module) -> None:
    """Raise for a model whose decoding is no graph or pass that this module knows."""
    names = getattr(model, "generators", ())
    if not set(names) & {"one_pass", "mask_predict"}:
        decoded = f"is decoded by {' or '.join(names)}" if names else "is autoregressive"
        raise ValueError(
            f"a {type(model).__name__} {decoded}, whose loop cannot be exported: nar-export onnx exports nat and cmlm"
        )
    if any(type(module).__name__ in ("IntLinear", "PQLinear") for module in model.modules()):
        raise ValueError("a model of quantised layers (--quant-noise-scalar) cannot be exported: give its float32 one")


def described(model: nn.Module, system: System) -> Tuple[Dict[str, Graph], Dict]:
    """The graphs of a model, by the names of their files, and what config.json says of it."""
    task, arguments = system.task, system.arguments
    dictionary, mask = task.target_dictionary, task.mask_index
    source, target = model.max_positions()
    banned = banned_on_canvas(dictionary, mask)
    iterative = "mask_predict" in model.generators
    longest = model.args.upsample * source if model.blank is not None else model.max_decoder_positions()
    copied = traceable(model, source, longest)
    settings = dict(symbols=len(dictionary), pad=dictionary.pad())
    example = padded_example(task.source_dictionary)
    if iterative:
        kind, graphs = "iterative", iterative_graphs(copied, example, {**settings, "banned": banned}, mask, source, target)
    else:
        kind = {"lengths": "lengths", "fertilities": "fertilities", None: "ctc"}[model.predicts]
        banned = tuple(symbol for symbol in banned if symbol != model.blank)
        module = OnePass(copied, banned=banned, **settings, **baked(arguments, model))
        graphs = {"model": one_pass_graph(module, example, kind, source)}
    config = {
        "made_by": "nar-export onnx",
        "format": runtime.FORMAT,
        "kind": kind,
        "graphs": list(graphs),
        "memory": graphs["pass"].inputs[3:] if iterative else [],
        "decoding": decoding(kind, arguments, model),
        "blank": model.blank,
        "max_source_positions": source,
        "max_target_positions": target,
        "languages": [task.cfg.source_lang, task.cfg.target_lang],
        "symbols": {name: getattr(dictionary, name)() for name in ("bos", "pad", "eos", "unk")} | {"mask": mask},
    }
    return graphs, config


def decoding(kind: str, arguments, model: nn.Module) -> Dict:
    """The options of decoding with their values: the defaults of the flags, and what the graphs hold."""
    options = {name: getattr(arguments, name) for name in runtime.OPTIONS}
    if kind == "iterative":
        from_flags = {name: registry.default_of(name) for name in runtime.ITERATIVE}
        beam = registry.GENERATORS["mask_predict"].default_length_beam
        return {**options, **from_flags, "length_beam": beam}
    held = baked(arguments, model)
    if kind == "lengths":
        options["length_beam"] = held["beam"]
    elif kind == "fertilities":
        options["fertility"] = "average" if held["average"] else "argmax"
    return options


def padded_example(dictionary) -> Tensor:
    """A batch of sources (3, 5) of 5, 3 and 2 tokens: the graph of a batch without padding would have no masks."""
    batch = torch.full((3, 5), dictionary.pad())
    for row, length in zip(batch, (5, 3, 2)):
        row[: length - 1] = dictionary.unk()
        row[length - 1] = dictionary.eos()
    return batch


def one_pass_graph(module: OnePass, example: Tensor, kind: str, longest: int) -> Graph:
    """The graph of a model of one pass."""
    sentences, width = Dim("sentences"), Dim("source", max=longest)
    outputs = ["tokens", "lprobs", "lengths", "keep"]
    if kind == "ctc":
        return Graph(module, (example,), ({0: sentences, 1: width}, None), ["src_tokens"], outputs)
    limits = torch.tensor([7, 4, 3])
    shapes = ({0: sentences, 1: width}, {0: sentences})
    return Graph(module, (example, limits), shapes, ["src_tokens", "longest"], outputs)


def iterative_graphs(model: nn.Module, example: Tensor, settings: Dict, mask: int, source: int, target: int) -> Dict:
    """The graphs of an iterative model: ``encoder`` and ``pass``.

    Args:
        settings: of ``Pass``. mask: index of ``<mask>``. source, target: the longest inputs.
    """
    sentences, width = Dim("sentences"), Dim("source", max=source)
    lengths, *memory = Encoder(model)(example)
    names = [f"{kind}_{layer}" for layer in range(len(memory) // 2) for kind in ("keys", "values")]
    encoder = Graph(
        Encoder(model), (example,), ({0: sentences, 1: width},), ["src_tokens"], ["length_lprobs", *names]
    )
    tokens = torch.full((3, 2, 7), settings["pad"])
    for row, length in zip(tokens.flatten(0, 1), (7, 5, 4, 3, 6, 2)):
        row[:length] = mask
    picked = torch.arange(4).expand(3, 2, 4).contiguous()
    beam = Dim("canvases")
    shapes = (
        {0: sentences, 1: beam, 2: Dim("target", max=target)},
        {0: sentences, 1: beam, 2: Dim("picked", max=target)},
        {0: sentences, 1: width},
        tuple({0: sentences, 2: width} for _ in memory),
    )
    inputs = ["tokens", "picked", "src_tokens", *names]
    decoder = Graph(Pass(model, **settings), (tokens, picked, example, *memory), shapes, inputs, ["best", "lprobs"])
    return {"encoder": encoder, "pass": decoder}


def write_graph(graph: Graph, path: Path) -> None:
    """Export a graph into a file.

    Raises:
        ValueError: torch.export cannot follow the model, or ONNX lacks an operator.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(
                graph.module.eval(),
                graph.example,
                dynamic_shapes=graph.shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            torch.onnx.export(
                program,
                f=path,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of many kinds, from three packages
        raise ValueError(f"PyTorch cannot export the {path.stem}: {in_one_line(error)}") from error


def write_rest(folder: Path, config: Dict, system: System) -> None:
    """Write the dictionaries, config.json and the program that runs the folder."""
    task = system.task
    sides = {"source": task.source_dictionary, "target": task.target_dictionary}
    data = utils.split_paths(task.cfg.data)[0]
    files = {side: f"dict.{language}.txt" for side, language in zip(sides, config["languages"])}
    for name in set(files.values()):
        shutil.copyfile(Path(data, name), folder / name)
    config = {**config, "dictionaries": files, "before": {}, "after": {}}
    for side, dictionary in sides.items():
        config["before"][side] = dictionary.symbols[: dictionary.nspecial]
        config["after"][side] = []
        lines = len(runtime.read_symbols(folder, config, side))
        config["after"][side] = dictionary.symbols[lines:]
        if runtime.read_symbols(folder, config, side) != dictionary.symbols:
            raise ValueError(f"{files[side]}: its symbols cannot be read without fairseq: binarise the data anew")
    config["versions"] = {"nar_plugins": version(), "torch": torch.__version__}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / runtime.CONFIG).write_text(text, encoding="utf-8")
    shutil.copyfile(runtime.__file__, folder / "runtime.py")


def version() -> Optional[str]:
    """The installed package's; None in a folder that is only on the path."""
    try:
        return importlib.metadata.version("nar-plugins")
    except importlib.metadata.PackageNotFoundError:
        return None
