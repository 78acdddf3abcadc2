"""``nar-export onnx``: a checkpoint as a folder that ONNX Runtime runs (``runtime.py``), checked against PyTorch."""

import ast
import copy
import importlib.util
import json
import logging
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig
from torch import Tensor
from torch.export import Dim

from nar_plugins.data.whole_file import check_new_folder, folder_written_whole
from nar_plugins.export import runtime
from nar_plugins.export.check import Agreement, batches, compare
from nar_plugins.export.graphs import Encoder, OnePass, Pass, Vertices, Words, traceable
from nar_plugins.export.int8 import SCOPES, Quantised, quantise, write_probe
from nar_plugins.export.layers import Recorder, check_layers
from nar_plugins.export.options import GENERATOR_OF, check_exportable, held_options
from nar_plugins.generators import registry
from nar_plugins.generators.base import banned_on_canvas
from nar_plugins.measure.machine import version_of
from nar_plugins.measure.systems import System, in_one_line

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PYTORCH = "2.8"  # tried with 2.13; the exporter of older ones is another
CHECKED = 64  # sentences
COMPARED = 8  # of them, on which every layer in 8 bits is compared


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


class Original(System):
    """The PyTorch side of an export.

    Attributes:
        model: as it was loaded; a generator changes the models that it is given.
    """

    def start(self) -> None:
        """Raise a ValueError for a model that cannot be exported, before its generator is built."""
        (model,) = self.models
        check_model(model)
        self.model = copy.deepcopy(model)
        super().start()


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
    check_new_folder(out, "--out")
    if len(utils.split_paths(checkpoint)) > 1:
        raise ValueError(f"{checkpoint}: an ensemble cannot be exported; export one checkpoint")
    check_exportable(System.parse(checkpoint, data, flags))
    system = Original("PyTorch", checkpoint, data, [*flags, "--cpu"])
    model = system.model
    held = held_options(system.arguments, model)
    with folder_written_whole(out) as folder:
        write_model(model, system.task, folder, held)
        quantised = in_8_bits(folder, system) if int8 else {}
        agreement = compare(system, runtime.OnnxTranslator(folder, torch.get_num_threads()), CHECKED, exact=not int8)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Exported(files, agreement, quantised)


def write_model(model: nn.Module, task, folder: Path, held: Dict) -> None:
    """Write all files of a model into a folder that is there, in float32; unchecked.

    Args:
        model: one that ``check_model`` accepts.
        task: with its dictionaries, and their files in the folder ``cfg.data``.
        folder: for the files.
        held: the options that the graphs hold (``options.held_options``).

    Raises:
        ValueError: PyTorch or ONNX lack something.
    """
    graphs, config = described(model, task, held)
    for name, graph in graphs.items():
        write_graph(graph, folder / f"{name}.onnx")
    write_rest(folder, {**config, "int8": None}, task)


def in_8_bits(folder: Path, system: System) -> Dict[str, Quantised]:
    """Quantise the graphs of a folder in place, and compare every layer with what it was.

    Args:
        system: whose data have the sentences that the layers are compared on.

    Returns:
        what was quantised, by graph.

    Raises:
        ValueError: see ``layers.check_layers`` and ``check.batches``.
    """
    import onnx

    plain = Recorder(folder, torch.get_num_threads())
    plain.generate(next(batches(system, plain.config["max_source_positions"], COMPARED, COMPARED)))
    quantised = {}
    for name, calls in plain.inputs.items():
        path = folder / f"{name}.onnx"
        before = onnx.load(str(path))
        quantised[name] = quantise(path)
        check_layers(before, onnx.load(str(path)), calls)
    write_config(folder, {**plain.config, "int8": write_probe(folder)})
    return quantised


def check_packages() -> None:
    """Raise where a package of the extra is missing, or PyTorch is too old."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"an export needs {', '.join(missing)}: pip install 'nar-plugins[onnx]'")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < tuple(map(int, PYTORCH.split("."))):
        raise ValueError(f"PyTorch {torch.__version__}: an export needs {PYTORCH} or later")


def check_model(model: nn.Module) -> None:
    """Raise for a model whose decoding is no graph or pass that this module knows."""
    names = getattr(model, "generators", ())
    whole = "one_pass" in names and (model.predicts in ("lengths", "fertilities") or model.blank is not None)
    if not whole and not is_iterative(model) and not is_dag(model):
        decoded = f"is decoded by {' or '.join(names)}" if names else "is autoregressive"
        raise ValueError(
            f"a {type(model).__name__} {decoded}, whose loop cannot be exported: nar-export onnx exports nat, cmlm and "
            "dag"
        )
    if any(type(module).__name__ in ("IntLinear", "PQLinear") for module in model.modules()):
        raise ValueError("a model of quantised layers (--quant-noise-scalar) cannot be exported: give its float32 one")


def is_iterative(model: nn.Module) -> bool:
    """Whether a model is decoded in several passes."""
    return "mask_predict" in getattr(model, "generators", ())


def is_dag(model: nn.Module) -> bool:
    """Whether a model's output is a path through a graph."""
    return "dag" in getattr(model, "generators", ())


def described(model: nn.Module, task, held: Dict) -> Tuple[Dict[str, Graph], Dict]:
    """The graphs of a model, by the names of their files, and what config.json says of it; see ``write_model``."""
    dictionary, mask = task.target_dictionary, task.mask_index
    source, target = model.max_positions()
    longest = model.args.upsample * source if model.blank is not None else model.max_decoder_positions()
    copied, example = traceable(model, source, longest), padded_example(task.source_dictionary)
    banned = tuple(symbol for symbol in banned_on_canvas(dictionary, mask) if symbol != model.blank)
    settings = dict(symbols=len(dictionary), pad=dictionary.pad(), banned=banned)
    if is_iterative(model):
        kind, graphs = "iterative", iterative_graphs(copied, example, settings, mask, source, target)
    elif is_dag(model):
        kind, graphs = "dag", dag_graphs(copied, example, settings, dictionary.eos(), source)
    else:
        kind = "ctc" if model.predicts is None else model.predicts
        module = OnePass(
            copied, **settings, beam=held.get("length_beam", 1), average=held.get("fertility") == "average"
        )
        graphs = {"model": one_pass_graph(module, example, kind, source)}
    config = {
        "made_by": "nar-export onnx",
        "format": runtime.FORMAT,
        "kind": kind,
        "graphs": list(graphs),
        "memory": graphs["pass"].inputs[3:] if "pass" in graphs else [],
        "decoding": {**defaults(kind), **held},
        "blank": model.blank,
        "max_source_positions": source,
        "max_target_positions": target,
        "languages": [task.cfg.source_lang, task.cfg.target_lang],
        "symbols": {**{name: getattr(dictionary, name)() for name in ("pad", "eos", "unk")}, "mask": mask},
    }
    return graphs, config


def defaults(kind: str) -> Dict:
    """The options that are chosen when a model is run, with the values of their flags."""
    names = runtime.options_of(kind)
    found = {f.name: f.default for f in fields(GenerationConfig) if f.name in names}
    found.update({name: registry.default_of(name) for name in names if name not in found})
    if "length_beam" in names:
        found["length_beam"] = registry.GENERATORS[GENERATOR_OF[kind]].default_length_beam
    return found


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
        return Graph(module, (example,), ({0: sentences, 1: width},), ["src_tokens"], outputs)
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
    encoder = Graph(Encoder(model), (example,), ({0: sentences, 1: width},), ["src_tokens"], ["length_lprobs", *names])
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


def dag_graphs(model: nn.Module, example: Tensor, settings: Dict, eos: int, longest: int) -> Dict:
    """The graphs of a model of directed acyclic graphs: ``vertices`` and ``words``.

    Args:
        settings: of ``Words``. eos: index of ``</s>``. longest: the longest source.
    """
    vertices, outputs = Vertices(model), ["features", "links", "lengths"]
    features, *_ = vertices(example)
    return {
        "vertices": Graph(
            vertices, (example,), ({0: Dim("sentences"), 1: Dim("source", max=longest)},), ["src_tokens"], outputs
        ),
        "words": Graph(
            Words(model, **settings, eos=eos),
            (features[0, :4],),
            ({0: Dim("picked")},),
            ["features"],
            ["tokens", "lprobs", "ends"],
        ),
    }


def write_graph(graph: Graph, path: Path) -> None:
    """Export a graph into a file.

    Raises:
        ValueError: torch.export cannot follow the model, or ONNX lacks an operator.
    """
    try:
        with torch.no_grad(), silent():
            program = torch.export.export(
                graph.module.eval(),
                graph.example,
                dynamic_shapes=graph.shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            exported = torch.onnx.export(
                program, input_names=graph.inputs, output_names=graph.outputs, dynamo=True, verbose=False
            )
            name_layers(exported.model.graph)
            exported.save(path, external_data=False)
    except Exception as error:  # of many kinds, from three packages
        raise ValueError(f"PyTorch cannot export the {path.stem}: {in_one_line(error)}") from error


def name_layers(graph) -> None:
    """Leave of a graph's notes on every node only the name of its module.

    The exporter's hold the lines of Python that it came from, with their files on this machine.

    Args:
        graph: of ``onnx_ir``.
    """
    for node in graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        node.metadata_props.clear()
        if len(scopes) > 1:
            node.metadata_props["layer"] = scopes[-2]


@contextmanager
def silent():
    """Without the log of the exporters, which has a line for every node and warns of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def write_rest(folder: Path, config: Dict, task) -> None:
    """Write the dictionaries, config.json and the program that runs the folder."""
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
    config["versions"] = {name: version_of(name) for name in ("nar-plugins", "torch", *PACKAGES)}
    write_config(folder, config)
    shutil.copyfile(runtime.__file__, folder / "runtime.py")


def write_config(folder: Path, config: Dict) -> None:
    """Write config.json, with the fingerprints of the graphs and dictionaries that are in the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".onnx", ".txt"))
    config = {**config, "files": {path.name: runtime.fingerprint(path) for path in paths}}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / runtime.CONFIG).write_text(text, encoding="utf-8")
