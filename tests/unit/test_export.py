"""Exported models, run by ONNX Runtime and NumPy, against the generators in PyTorch with the same weights."""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import source_batch
from fairseq.modules import SinusoidalPositionalEmbedding
from saved import corpus, save
from tiny import dictionary, model

from nar_plugins.cli import bench
from nar_plugins.cli import export as command
from nar_plugins.data.whole_file import folder_written_whole
from nar_plugins.export import check, onnx, runtime
from nar_plugins.export.graphs import SinusoidalPositions
from nar_plugins.export.int8 import PROBE, PROBE_SIZE, PROBED, ZERO, quantise, write_probe
from nar_plugins.export.layers import LIMIT, Recorder, check_layers
from nar_plugins.export.options import check_run
from nar_plugins.generators.canvas import lengths as torch_lengths
from nar_plugins.generators.canvas import schedule as torch_schedule
from nar_plugins.generators.options import generation_options
from nar_plugins.generators.registry import CONFIGS, GENERATORS
from nar_plugins.hub import from_pretrained
from nar_plugins.measure.systems import parse_flags
from nar_plugins.models.dag.fuzzy import expected_visits
from nar_plugins.modules.exporting import count_up_to, is_padded
from nar_plugins.modules.factorised import factorise

MISSING = [name for name in onnx.PACKAGES if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed")

WORDS, PAD, EOS, MASK = 20, 1, 2, 24
SMALL = ("--share-all-embeddings", "--encoder-layers", "1", "--max-source-positions", "30")
SMALL += ("--max-target-positions", "40")
SIZE = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("embed-dim=32", "ffn-embed-dim=16")]
SIZE += ["--decoder-layers=1", "--encoder-attention-heads=2", "--decoder-attention-heads=2"]
WIDE = ("--encoder-embed-dim=64", "--decoder-embed-dim=64", "--encoder-ffn-embed-dim=128")
PLAIN = ("--no-positional-attention", "--no-mask-diagonal", "--no-layerwise-attention")
WINDOW = ("--upsample", "2", "--source-copy", "uniform", "--max-transition-length", "4", "--max-target-positions", "60")
KINDS = {  # architecture, flags, options that the graph holds
    "ctc": ("nat_tiny", (*PLAIN, "--ctc", "--upsample", "3"), {}),
    "fertilities": ("nat_tiny", ("--decoder-layers", "1", "--decoder-normalize-before"), {}),
    "lengths": ("nat_tiny", (*PLAIN, "--decoder-layers", "1", "--source-copy", "soft"), {"length_beam": 3}),
    "cmlm": ("cmlm_tiny", ("--decoder-layers", "2"), {}),
    "ranked": ("cmlm_tiny", ("--decoder-layers", "1"), {}),  # nar-prune --embedding-rank: one layer reads another's
    "dag": ("dag_tiny", ("--upsample", "2.5", "--decoder-layers", "1", "--max-target-positions", "80"), {}),
    "window": ("dag", (*WINDOW, *SIZE), {}),
}
# without padding and with it; sources of one token, an empty one, and the longest
BATCHES = [[7], [2], [1], [6, 6, 6], [5, 9, 2, 7, 1], [30, 2, 14], [2, 2, 1, 2]]
LINES = ["w3 w1 w7 w12", "w2", "", "w19 w4 w4 w8 w1 w0 w11", "w5 unknown w6", "w3 <pad> <mask> w9 <pad>"]
READ = [*LINES[:-1], "w3 unknown unknown w9 unknown"]  # reserved symbols are no words to a parallel model
LONG = " ".join(["w3 w1 w7"] * 11)


class Made(NamedTuple):
    model: torch.nn.Module
    task: object
    folder: Path  # exported
    checkpoint: str = ""
    data: str = ""
    printed: str = ""  # by the command


def random_weights(kind: str) -> tuple:
    """A model that is sure of various things, and its task."""
    arch, flags, _ = KINDS[kind]
    one, task = model(*SMALL, *flags, arch=arch)
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if weight.dim() > 1 and kind in ("cmlm", "ranked", "window"):  # BERT's initialisation is small
                weight.mul_(6)
            elif name == "decoder.output_projection.weight":
                weight.mul_(8)
        if getattr(one.encoder, "fertility_head", None) is not None:
            one.encoder.fertility_head.weight.mul_(6)
            one.encoder.fertility_head.bias.copy_(torch.arange(50).eq(1) * 4.0 - torch.arange(50) * 0.7)
    if kind == "ranked":
        factorise(one, 8)
    return one.eval(), task


@functools.lru_cache(maxsize=None)
def exported(kind: str) -> Made:
    """A model and its export; of CTC and of a dag from a checkpoint, by the command."""
    folder = Path(tempfile.mkdtemp())
    if kind in ("ctc", "dag"):
        arch, flags, _ = KINDS[kind]
        flags = (*flags, *(WIDE if kind == "dag" else ()), "--max-source-positions", "30")
        checkpoint = save(folder / "model.pt", arch, *flags, scale=6.0 if kind == "dag" else 4.0)
        data = corpus(folder, [(line, line) for line in LINES if line])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main(["onnx", str(checkpoint), "--data", str(data), "--out", str(folder / "out")])
        system = onnx.Original("PyTorch", str(checkpoint), str(data), ["--cpu"])
        return Made(system.model, system.task, folder / "out", str(checkpoint), str(data), printed.getvalue())
    one, task = random_weights(kind)
    for side in ("src", "tgt"):
        dictionary(WORDS).save(str(folder / f"dict.{side}.txt"))
    task.cfg.data, task.cfg.source_lang, task.cfg.target_lang = str(folder), "src", "tgt"
    (folder / "out").mkdir()
    onnx.write_model(one, task, folder / "out", KINDS[kind][2])
    return Made(one, task, folder / "out")


@pytest.fixture(scope="module", autouse=True)
def folders():
    yield
    exported.cache_clear()
    in_8_bits.cache_clear()


@pytest.fixture(autouse=True)
def log():
    yield
    logging.disable(logging.NOTSET)


def hypotheses(made: Made, source, **settings):
    """What the generator says."""
    name = made.model.generators[0]
    config = {f.name: f.default for f in fields(CONFIGS[name]) if not f.name.startswith("_")}
    ours = {key: settings.pop(key) for key in list(settings) if key in config}
    options = generation_options(SimpleNamespace(**settings))
    config = SimpleNamespace(**{**config, **ours})
    generator = GENERATORS[name]([made.model], made.task.target_dictionary, config, options, MASK, None)
    return generator.generate([made.model], {"net_input": {"src_tokens": source}})


def check_same(ours, theirs, atol=1e-4):
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs):
        assert [h["tokens"] for h in own] == [h["tokens"].tolist() for h in their]
        for a, b in zip(own, their):
            assert a["steps"] == b["steps"] and a["score"] == pytest.approx(float(b["score"]), abs=atol)
            np.testing.assert_allclose(a["positional_scores"], b["positional_scores"].numpy(), atol=atol)


# -- the graphs --------------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize(
    "kind, run",
    [
        ("ctc", {}),
        ("ctc", {"unnormalized": True}),
        ("fertilities", {}),
        ("fertilities", {"max_len_a": 0.5, "max_len_b": 2}),
        ("lengths", {"lenpen": 2.0}),
        ("lengths", {"max_len_b": 4}),
        ("ranked", {}),
        ("cmlm", {}),
        ("cmlm", {"iterations": 1, "length_beam": 1}),
        ("cmlm", {"iterations": 4, "schedule": "cosine", "max_len_b": 6}),
        ("cmlm", {"schedule": "confidence", "confidence_threshold": 0.3}),
        ("cmlm", {"iterations": 2, "dedup": "token"}),
        ("cmlm", {"length_weight": 1.0, "lenpen": 0.5}),
        ("dag", {}),
        ("dag", {"dedup": "token", "lenpen": 0.5}),
        ("dag", {"dag_decode": "greedy"}),
        ("dag", {"dag_decode": "viterbi", "length_beam": 3, "lenpen": 2.0}),
        ("dag", {"dag_decode": "joint-viterbi", "length_beam": 4, "max_len_b": 8}),
        ("dag", {"dag_decode": "joint-viterbi", "unnormalized": True}),
        ("window", {}),
        ("window", {"dag_decode": "joint-viterbi"}),
    ],
)
def test_tokens_and_scores_are_pytorchs_in_every_batch(kind, run):
    made = exported(kind)
    translator = runtime.OnnxTranslator(made.folder, 1, **run)
    texts = set()
    for seed, lengths in enumerate(BATCHES):
        source = source_batch(lengths, WORDS, seed=seed)
        theirs = hypotheses(made, source, **{**KINDS[kind][2], **run})
        check_same(translator.generate({"net_input": {"src_tokens": source}}), theirs)
        texts |= {tuple(hypos[0]["tokens"].tolist()) for hypos in theirs}
    assert len(texts) > 6


@installed
def test_no_line_of_this_machines_code_is_in_the_files():
    for path in exported("ctc").folder.glob("*.onnx"):
        assert str(Path(onnx.__file__).parent).encode() not in path.read_bytes()


@functools.lru_cache(maxsize=None)
def in_8_bits(kind: str) -> tuple:
    """The folder of an export, quantised: what was, by graph; the largest errors of its layers; the folder."""
    folder = shutil.copytree(exported(kind).folder, Path(tempfile.mkdtemp()) / "int8")
    plain, quantised, errors = Recorder(folder, 1), {}, {}
    for seed, lengths in enumerate(BATCHES):
        plain.decode(source_batch(lengths, WORDS, seed=seed).numpy())
    for name, calls in plain.inputs.items():
        before = load_graph(folder / f"{name}.onnx")
        quantised[name] = quantise(folder / f"{name}.onnx")
        errors[name] = check_layers(before, load_graph(folder / f"{name}.onnx"), calls)
    onnx.write_config(folder, {**plain.config, "int8": write_probe(folder)})
    return quantised, errors, folder


def load_graph(path: Path):
    return importlib.import_module("onnx").load(str(path))


@installed
@pytest.mark.parametrize("kind", ["ctc", "cmlm", "ranked", "dag"])
def test_int8_is_every_linear_layer_as_near_as_rounding_explains(kind):
    quantised, errors, _ = in_8_bits(kind)
    layers, kept = {}, {}
    for graph in quantised.values():
        layers.update(graph.layers)
        kept.update(graph.kept)
        assert graph.after < graph.before
    wanted = {
        name: (module.out_features, module.in_features)
        for name, module in exported(kind).model.named_modules(remove_duplicate=False)
        if type(module) is torch.nn.Linear
    }
    assert {name.split("model.", 1)[1]: shape for name, shape in layers.items()} == wanted
    assert {name.rsplit(".", 1)[1] for name in kept} == ({"length_head"} if kind in ("cmlm", "ranked") else set())
    assert all(0.5 < error < LIMIT / 2 for error in errors.values())


@installed
@pytest.mark.parametrize("kind", ["ctc", "cmlm", "dag"])
def test_int8_does_not_depend_on_the_batch(kind):
    *_, folder = in_8_bits(kind)
    if product_of(folder) != PROBED:
        pytest.skip("this processor adds in 16 bits: it has no VNNI")
    translator, differences = runtime.OnnxTranslator(folder, 1), []
    for seed, lengths in enumerate(BATCHES):
        source = source_batch(lengths, WORDS, seed=seed)
        together = translator.decode(source.numpy())
        for row, own, their in zip(source, together, hypotheses(exported(kind), source)):
            (alone,) = translator.decode(row[row.ne(PAD)].unsqueeze(0).numpy())
            assert [h["tokens"] for h in alone] == [h["tokens"] for h in own]
            differences.append(abs(own[0]["score"] - float(their[0]["score"])))
    assert 0 < sum(differences) / len(differences) < 0.5  # random weights bear less than trained ones (check.ROUGHLY)


def product_of(folder: Path) -> int:
    """What this processor makes of the probe."""
    rows = np.full((4, PROBE_SIZE), ZERO + 127, dtype=np.uint8)
    (products,) = runtime.session(folder / PROBE, 1).run(None, {"rows": rows})
    assert (products == products[0, 0]).all()
    return int(products[0, 0])


@installed
def test_a_processor_that_adds_in_16_bits_is_refused(tmp_path):
    probe = write_probe(tmp_path)
    found = product_of(tmp_path)
    assert found <= probe["product"] == PROBED
    runtime.check_products(tmp_path, {"int8": {**probe, "product": found}}, 1)
    with pytest.raises(ValueError, match="^int8 needs a processor with VNNI"):
        runtime.check_products(tmp_path, {"int8": {**probe, "product": found + 1}}, 1)


def test_positions_are_fairseqs():
    theirs = SinusoidalPositionalEmbedding(16, PAD, 8)
    tokens = source_batch([9, 4, 1], WORDS)
    own = SinusoidalPositions(theirs, 9)
    assert torch.equal(own(tokens), theirs(tokens)) and own.max_positions == 9


def test_outside_of_an_export_the_helpers_ask_the_data():
    assert not is_padded(torch.tensor([False])) and is_padded(torch.tensor([False, True]))
    ends, steps = torch.tensor([[0, 2, 2, 5]]), torch.arange(7).unsqueeze(0)
    assert count_up_to(ends, steps).tolist() == [[1, 1, 3, 3, 3, 4, 4]]


@installed
def test_in_an_export_the_helpers_are_a_graph():
    class Both(torch.nn.Module):
        def forward(self, ends, steps):
            return count_up_to(ends, steps) * int(is_padded(steps.eq(-1)))

    given = torch.tensor([[0, 2, 2, 5]]), torch.arange(7).unsqueeze(0)
    program = torch.export.export(Both(), given, strict=False)
    assert program.module()(*given).tolist() == [[1, 1, 3, 3, 3, 4, 4]]


# -- NumPy's twins of the generators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4, 30])
def test_lengths_are_chosen_as_in_pytorch(beam):
    lprobs = torch.randn(6, 12, generator=torch.Generator().manual_seed(beam)).mul(3).log_softmax(-1)
    lprobs[:, 0], lprobs[2, 3:] = -float("inf"), -float("inf")
    longest = torch.tensor([1, 3, 11, 5, 200, 2])
    theirs = torch_lengths.candidate_lengths(lprobs, beam, longest)
    ours = runtime.candidate_lengths(lprobs.numpy(), beam, longest.numpy())
    assert [x.tolist() for x in ours] == [x.tolist() for x in theirs]


def test_the_vertices_that_paths_visit_are_pytorchs():
    links = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    links = links.masked_fill(torch.ones(9, 9).tril().bool(), -1e9).log_softmax(2)
    links = links.masked_fill(torch.ones(9, 9).tril().bool(), -float("inf"))
    wanted = expected_visits(links.exp())
    np.testing.assert_allclose(runtime.expected_visits(links.numpy()), wanted.numpy(), atol=1e-6)


@pytest.mark.parametrize("schedule", runtime.SCHEDULES)
def test_as_many_positions_are_masked_as_in_pytorch(schedule):
    lengths = torch.arange(1, 500)
    for passes in (2, 3, 4, 10, 12):
        for done in range(1, passes):
            theirs = torch_schedule.remask_count(lengths, done, passes, schedule)
            assert runtime.remask_count(lengths.numpy(), done, passes, schedule).tolist() == theirs.tolist()


def test_its_schedules_are_pytorchs():
    assert runtime.SCHEDULES == torch_schedule.SCHEDULES


# -- the folder --------------------------------------------------------------------------------------------------------

ALONE = """
import runpy, sys
for name in ("torch", "fairseq", "nar_plugins", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["runtime.py", "--threads", "1", "--batch-size", "2"]
runpy.run_path(FOLDER + "/runtime.py", run_name="__main__")
"""


@installed
@pytest.mark.parametrize("kind", ["ctc", "dag"])
def test_the_folder_runs_without_pytorch_and_fairseq(kind):
    made = exported(kind)
    program = f"FOLDER = {str(made.folder)!r}\n{ALONE}"
    text = "\ufeff" + "\n".join([LINES[0] + "\r", *LINES[1:], LONG, "w1\rw2\u2028w3"])  # no line end at the end
    done = subprocess.run([sys.executable, "-c", program], input=text.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    wanted = [output_of(made, line) for line in READ] + ["", output_of(made, "w1 w2 w3")]
    assert done.stdout.decode().split("\n") == [*wanted, ""] and len(set(wanted)) > 2
    said = "line 7 has 34 tokens, more than the 30 source positions: its translation is empty; cut it with --truncate-"
    assert done.stderr.decode().startswith(f"runtime.py: {said}") and done.stderr.count(b"\n") == 1


def output_of(made: Made, line: str) -> str:
    """PyTorch's output for a line of sub-words."""
    row = made.task.source_dictionary.encode_line(line, add_if_not_exist=False).long()
    return made.task.target_dictionary.string(hypotheses(made, row.unsqueeze(0))[0][0]["tokens"])


def test_a_line_that_is_too_long_may_be_cut(capsys):
    assert [*runtime.fitted(["a b", "a b c d", "a b c"], 4, cut=True)] == ["a b", "a b c", "a b c"]
    assert capsys.readouterr().err == "runtime.py: line 2 has 5 tokens, more than the 4 source positions: cut to 4\n"


def test_a_mask_of_the_dictionarys_file_is_no_word():
    symbols, config = ["<s>", "<pad>", "</s>", "<unk>", "a", "<mask>", "b"], {"after": {"source": []}}
    index = runtime.index_of(symbols, config, {"<pad>", "<mask>"})
    assert index == {"<s>": 0, "</s>": 2, "<unk>": 3, "a": 4, "b": 6}


@installed
@pytest.mark.parametrize(
    "kind, options",
    [("ctc", {}), ("dag", {}), ("dag", {"dag_decode": "joint-viterbi", "length_beam": 3, "dedup": "token"})],
)
def test_the_hub_translates_an_exported_folder_as_it_does_the_checkpoint(kind, options):
    made = exported(kind)
    texts = [*LINES, LINES[0]]
    ours, theirs = (
        from_pretrained(*where, lenpen=0.5, **options).translate(texts, batch_size=2)
        for where in ((made.folder,), (made.checkpoint, made.data))
    )
    assert [found.text for found in ours] == [found.text for found in theirs]
    assert [found.score for found in ours] == pytest.approx([found.score for found in theirs], abs=1e-4)
    assert [(found.tokens, found.passes) for found in ours] == [(found.tokens, found.passes) for found in theirs]


@installed
@pytest.mark.parametrize(
    "options, said",
    [
        ({"generator": "blockwise"}, "--generator blockwise is a loop over a cache"),
        ({"iterations": 4}, "--iterations"),
        ({"data": "elsewhere"}, "has dictionaries of its own"),
        ({"generator": "dag"}, "--generator dag cannot decode this exported model: use auto or one_pass"),
        ({"model_overrides": "{'dropout': 0.1}"}, "--model-overrides cannot be honoured by an exported model: give it"),
        ({"max_len_b": 4}, "--max-len-b cannot be honoured by an exported model: leave it out"),
        ({"dedup": "word"}, "dedup word: one of none, token"),
    ],
)
def test_the_hub_refuses_what_an_exported_folder_has_not(options, said):
    with pytest.raises(ValueError, match=said):
        from_pretrained(exported("ctc").folder, **options)


@installed
@pytest.mark.parametrize("kind, graph", [("ctc", "model.onnx"), ("dag", "vertices.onnx")])
def test_the_command_says_what_it_made_and_checked(kind, graph):
    printed = exported(kind).printed
    assert graph in printed and "runtime.py" in printed
    assert "checked: 15 of 15 outputs are PyTorch's" in printed


@installed
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json: give a folder that nar-export onnx made"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "was not written by nar-export onnx"),
        (lambda f: edit(f, format=99), "has format 99, this program reads 1: export the model again"),
        (lambda f: edit(f, kind="tree"), "has the kind tree, which this program does not know: use the folder's own"),
        (lambda f: (f / "model.onnx").unlink(), "has no model.onnx: export the model again"),
        (lambda f: (f / "dict.tgt.txt").unlink(), "has no dict.tgt.txt: export the model again"),
        (lambda f: edit(f, decoding=None), "config.json has no 'decoding': copy the folder again, or export the model"),
        (lambda f: edit(f, graphs="model"), "config.json has no 'graphs': copy the folder again, or export the model"),
        (lambda f: (f / "model.onnx").write_bytes(b"foreign"), "model.onnx is not the file that nar-export onnx wrote"),
        (lambda f: (f / "dict.src.txt").write_text("w 1\n"), "dict.src.txt is not the file that nar-export onnx wrote"),
        (lambda f: foreign(f, b"foreign"), "model.onnx cannot be read: "),
    ],
)
def test_a_folder_that_is_not_whole_is_named(tmp_path, change, said):
    folder = shutil.copytree(exported("ctc").folder, tmp_path / "copy")
    change(folder)
    with pytest.raises(ValueError) as error:
        runtime.OnnxTranslator(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def foreign(folder: Path, content: bytes) -> None:
    """Another model in a folder of the first version, which has no fingerprints."""
    (folder / "model.onnx").write_bytes(content)
    edit(folder, files={})


def edit(folder: Path, **entries) -> None:
    path = folder / runtime.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


ITERATIVE = {
    "kind": "iterative",
    "decoding": {"iterations": 10, "length_beam": 5, "schedule": "linear", "confidence_threshold": 0.9},
}
DAG = {"kind": "dag", "decoding": {"dag_decode": "lookahead", "length_beam": 1, "max_len_a": 0, "max_len_b": 200}}


@pytest.mark.parametrize(
    "config, options, said",
    [
        ({"kind": "ctc", "decoding": {}}, {"iterations": 3}, "iterations is no option of this model: the options are "),
        ({"kind": "lengths", "decoding": {"length_beam": 3}}, {"length_beam": 2}, "length_beam was fixed at 3 by the "),
        (ITERATIVE, {"iterations": 0}, "iterations 0: at least 1"),
        (ITERATIVE, {"length_weight": -1}, "length_weight -1: a number from 0 up"),
        (ITERATIVE, {"schedule": "square"}, "schedule square: one of linear, cosine, confidence"),
        (ITERATIVE, {"confidence_threshold": 2}, "confidence_threshold 2: a probability, from 0 to 1"),
        (
            ITERATIVE,
            {"confidence_threshold": 0.5},
            "confidence_threshold is not read by the schedule linear: give the ",
        ),
        (ITERATIVE, {"dedup": "word"}, "dedup word: one of none, token"),
        ({"kind": "ctc", "decoding": {}}, {"max_len_b": 9}, "max_len_b is no option of this model: the options are "),
        (DAG, {"dag_decode": "beam"}, "dag_decode beam: one of lookahead, greedy, viterbi, joint-viterbi"),
        (DAG, {"length_beam": 2}, "length_beam: dag_decode lookahead has one path; give viterbi or joint-viterbi, or "),
        (DAG, {"max_len_b": 9, "dag_decode": "greedy"}, "max_len_b: dag_decode greedy has one path; give viterbi or "),
        (DAG, {"dag_decode": "viterbi", "length_beam": 0}, "length_beam 0: at least 1"),
    ],
)
def test_an_option_that_a_folder_has_not_is_named(config, options, said):
    with pytest.raises(ValueError) as error:
        runtime.checked_options(config, options)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    "config, flags, said",
    [
        (ITERATIVE, "--iterations 0", "--iterations 0: at least 1"),
        (ITERATIVE, "--confidence-threshold 0.5", "--confidence-threshold is not read by the schedule linear: give "),
        (DAG, "--max-len-b 9", "--max-len-b: dag_decode lookahead has one path; give viterbi or "),
        (DAG, "--max-len-a inf", "--max-len-a inf: choose a finite number"),
        (ITERATIVE, "--nbest 0", "--nbest 0: at least one output is needed"),
    ],
)
def test_a_flag_of_a_folder_is_refused_as_a_flag(config, flags, said):
    with pytest.raises(ValueError) as error:
        check_run(parse_flags("folder", "data", flags.split()), config)
    assert str(error.value).startswith(said)


@installed
def test_what_cannot_be_translated_is_named():
    translator = runtime.OnnxTranslator(exported("ctc").folder, 1)
    with pytest.raises(ValueError, match="^line 2 has 31 tokens, and the model 30 positions: cut it$"):
        translator.translate(["w1", "w1 " * 30])
    with pytest.raises(ValueError, match=r"^lines is str: give a list of lines, such as \['...'\]$"):
        translator.translate("w1 w2")


def test_an_output_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="^the model's output is NaN"):
        runtime.candidate_lengths(np.full((1, 3), np.nan), 1, np.array([2]))


def test_without_onnx_runtime_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="^ONNX Runtime is not installed: pip install"):
        runtime.session(Path("model.onnx"), 1)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data and checkpoints whose models cannot be exported, and one whose model could be."""
    root = tmp_path_factory.mktemp("export")
    made = {arch: str(save(root / f"{arch}.pt", arch)) for arch in ("transformer_tiny", "blockwise_tiny", "cmlm_tiny")}
    return SimpleNamespace(root=root, bin=str(corpus(root, [("w1 w2", "w3")])), **made)


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        command.main(["onnx", *map(str, arguments)])
    said = error.value.code
    assert isinstance(said, str) and "\n" not in said and said.startswith("nar-export: "), said
    return said[len("nar-export: ") :]


@installed
@pytest.mark.parametrize(
    "arch, said",
    [
        ("transformer_tiny", "a TransformerModel is autoregressive, whose loop cannot be exported: "),
        ("blockwise_tiny", "a BlockwiseModel is decoded by blockwise or beam, whose loop cannot be exported: "),
    ],
)
def test_a_model_with_another_loop_is_refused(data, tmp_path, arch, said):
    out = tmp_path / "out"
    assert (
        refused(getattr(data, arch), "--data", data.bin, "--out", out)
        == said + "nar-export onnx exports nat, cmlm and dag"
    )
    assert not list(tmp_path.iterdir())


@installed
@pytest.mark.parametrize(
    "flags, said",
    [
        (
            "--generator noisy_parallel",
            "--generator noisy_parallel samples fertilities and asks an autoregressive model",
        ),
        (
            "--fertility-samples 5",
            "--fertility-samples cannot be honoured by an exported model: sampled fertilities are",
        ),
        ("--ctc-beam 4", "--ctc-beam cannot be honoured by an exported model: the graph outputs CTC's best path only"),
        ("--rescorer ar.pt", "--rescorer cannot be honoured by an exported model: an autoregressive model is no part"),
        ("--decode-dtype int8", "--decode-dtype cannot be honoured by an exported model: give --int8 to nar-export"),
        ("--iterations 3", "--iterations is chosen when the exported model is run: leave it out of --flags"),
        ("--dag-decode viterbi", "--dag-decode is chosen when the exported model is run: leave it out of --flags"),
        ("--dedup token", "--dedup is chosen when the exported model is run: leave it out of --flags"),
        ("--lenpen 2", "--lenpen is chosen when the exported model is run: leave it out of --flags"),
        ("--fp16", "--fp16: an exported model is float32, or int8 by nar-export onnx --int8"),
        ("--beam 3", "--beam 3: an exported model has no beam; leave it out"),
        ("--sampling", "--sampling cannot be honoured by an exported model: leave it out"),
        ("--min-len 4", "--min-len cannot be honoured by an exported model: its shortest output is fixed"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_flag_that_cannot_be_exported_is_named_before_the_checkpoint_is_read(tmp_path, flags, said):
    found = refused("no.pt", "--data", "no data", "--out", tmp_path / "out", "--flags", flags)
    assert found.startswith(said)


@installed
def test_a_length_beam_of_an_iterative_model_is_chosen_later(data, tmp_path):
    found = refused(data.cmlm_tiny, "--data", data.bin, "--out", tmp_path / "out", "--flags", "--length-beam 3")
    assert found == "--length-beam is chosen when the exported model is run: leave it out of --flags"


@installed
def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "there").mkdir()
    common = ("no.pt", "--data", "no data", "--out")
    assert (
        refused(*common, tmp_path / "there")
        == f"--out {tmp_path}/there is there already: give another one, or remove it"
    )
    assert refused(*common, tmp_path / "no" / "out") == f"--out {tmp_path}/no/out: no folder '{tmp_path}/no'"
    found = refused("a.pt:b.pt", "--data", "no data", "--out", tmp_path / "out")
    assert found == "a.pt:b.pt: an ensemble cannot be exported; export one checkpoint"


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = refused("no.pt", "--data", "no data", "--out", tmp_path / "out")
    assert found == "an export needs onnx, onnxscript, onnxruntime: pip install 'nar-plugins[onnx]'"


@installed
def test_an_export_that_differs_from_pytorch_leaves_nothing(data, tmp_path, monkeypatch):
    class Other:
        config = {"max_source_positions": 30}

        def generate(self, sample):
            scores = {"tokens": [4, EOS], "positional_scores": [-1.0, -1.0], "score": -9.0, "steps": 1}
            return [[scores] for _ in sample["id"]]

        def string(self, tokens):
            return str(tokens)

    monkeypatch.setattr(onnx, "write_model", lambda *arguments: None)
    monkeypatch.setattr(onnx, "in_8_bits", lambda *arguments: {})
    monkeypatch.setattr(runtime, "OnnxTranslator", lambda *arguments: Other())
    found = refused(data.cmlm_tiny, "--data", data.bin, "--out", tmp_path / "out")
    assert found.startswith(
        "sentence 0 in a batch of 1: the exported model outputs '[4, 2]' with score -9.0000, PyTorch"
    )
    found = refused(data.cmlm_tiny, "--data", data.bin, "--out", tmp_path / "out", "--int8")
    assert "its weights do not bear int8" in found and not list(tmp_path.iterdir())


@pytest.mark.parametrize("apart", [0.9 * check.ROUGHLY, 1.1 * check.ROUGHLY])
def test_scores_in_8_bits_are_similar_or_refused(apart, monkeypatch):
    def hypothesis(score, as_list):
        return {"tokens": as_list([4, EOS]), "positional_scores": as_list([0.0, 2 * score]), "score": score}

    tensors = torch.tensor, lambda values: values
    theirs, own = (hypothesis(score, as_list) for score, as_list in zip((-1.0, -1.0 - apart), tensors))
    system = SimpleNamespace(hypotheses=lambda sample: [[theirs]])
    translator = SimpleNamespace(config={"max_source_positions": 30}, generate=lambda sample: [[own]])
    monkeypatch.setattr(check, "batches", lambda *arguments: [{"id": torch.tensor([0])}])
    if apart < check.ROUGHLY:
        found = check.compare(system, translator, 1, exact=False)
        assert found.same == found.sentences == 3 and found.mean == pytest.approx(apart)
    else:
        with pytest.raises(ValueError, match="differ from PyTorch's by 0.11 on average, more than 0.1: its weights do"):
            check.compare(system, translator, 1, exact=False)


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyError), folder_written_whole(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    with folder_written_whole(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "file").read_text() == "whole"


# -- rows of nar-bench -------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("kind, flags", [("ctc", "--lenpen 1"), ("dag", "--dag-decode joint-viterbi --dedup token")])
def test_a_row_of_nar_bench_says_what_pytorch_says(tmp_path, kind, flags):
    made = exported(kind)
    systems = ["--system", "PyTorch", made.checkpoint, flags, "--system", "ONNX", f"onnx:{made.folder}", flags]
    quick = ["--batch-sizes", "1,3", "--repeats", "1", "--flags", "--cpu", "--output", str(tmp_path / "out")]
    with contextlib.redirect_stdout(io.StringIO()):
        bench.main([made.data, *systems, *quick, "--json", str(tmp_path / "table.json")])
    assert (tmp_path / "out" / "ONNX.txt").read_text() == (tmp_path / "out" / "PyTorch.txt").read_text()
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["machine"]["versions"]["onnxruntime"] and written["systems"][1]["passes"] == 1
    assert written["systems"][1]["weight_bytes"] > 1000


@installed
@pytest.mark.parametrize(
    "path, flags, said",
    [
        ("onnx:{}", "--iterations 3", "--iterations cannot be honoured by an exported model: leave it out"),
        ("onnx:{}", "--fertility average", "--fertility average is not what the folder was exported with: give it to "),
        ("onnx:{}", "--decode-dtype int8", "--decode-dtype cannot be honoured by an exported model: give --int8 to "),
        ("onnx:no", "", "no has no config.json: give a folder that nar-export onnx made"),
        ("onnx:{}:{}", "", "an exported folder is one model, and no ensemble"),
    ],
)
def test_a_row_that_cannot_be_is_refused_before_a_model_is_loaded(path, flags, said):
    path = path.replace("{}", str(exported("ctc").folder))
    with pytest.raises(SystemExit) as error:
        bench.main(["no data", "--system", "A", path, flags, "--flags", "--cpu"])
    assert error.value.code.startswith(f"nar-bench: --system A: {said}")
