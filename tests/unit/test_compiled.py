"""``--compile``: the tokens are those without it, in few graphs, whatever a batch is padded to; and what it refuses.

Tracing takes seconds and compiling minutes: most tests call the functions as they are, on padded batches; a few trace
them; one compiles.
"""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from conftest import mask_predict, random_model, source_batch
from test_dag_generator import Graphs, dag
from test_one_pass import ar, decode, generator, nat
from torch._dynamo.utils import counters

from nar_plugins.generators.options import refuse_foreign
from nar_plugins.generators.registry import CONFIGS
from nar_plugins.modules.fast.compiled import EXACT, FEW, CompiledFunction, compile_layers, compiler_lacks, few_tokens
from nar_plugins.modules.fast.prepare import prepare_for_decoding

LENGTHS = [6, 3, 12, 2, 9, 17, 1]
PLAIN = ("--no-positional-attention", "--no-mask-diagonal", "--no-layerwise-attention")
ONE_LAYER = ("--encoder-layers", "1", "--decoder-layers", "1")  # tracing more takes longer
needs_compiler = pytest.mark.skipif(
    compiler_lacks(torch.device("cpu")) is not None, reason="no C++ compiler on this machine"
)


@pytest.fixture(autouse=True)
def no_graphs():
    """The graphs of other tests count neither here nor towards PyTorch's limit."""
    torch._dynamo.reset()
    counters.clear()


def one_pass(*flags, name="one_pass", **settings):
    model, task = nat(*flags)
    return lambda **more: generator(name, [model], task, **settings, **more)


def noisy_parallel():
    model, task = nat()
    teacher = ar(task)
    return lambda **more: generator("noisy_parallel", [model], task, teacher, fertility_samples=4, **more)


def iterative(*flags, **settings):
    model, task = random_model(flags=flags)
    given = (task.target_dictionary, task.mask_index)
    return lambda **more: mask_predict([model], *given, **settings, **more)


def graphs():
    model, task = dag()
    return lambda **more: generator("dag", [model], task, **more)


SERVED = {
    "fertilities, Gu's decoder": one_pass,
    "fertilities, averaged": lambda: one_pass(*PLAIN, fertility="average"),
    "lengths": lambda: one_pass("--source-copy", "uniform", "--length-head", "pooled", length_beam=3),
    "CTC": lambda: one_pass("--ctc", *PLAIN),
    "CTC's beam": lambda: one_pass("--ctc", ctc_beam=3),
    "noisy_parallel": noisy_parallel,
    "mask_predict": lambda: iterative(iterations=4),
    "mask_predict, confidence": lambda: iterative(iterations=4, schedule="confidence", confidence_threshold=0.3),
    "mask_predict, pre-norm": lambda: iterative(
        "--encoder-normalize-before", "--decoder-normalize-before", "--checkpoint-activations", iterations=3
    ),
    "dag": graphs,
}


def traced(build, sizes=EXACT):
    """The generator with ``--compile``, whose graphs are traced and not compiled."""
    made = build(compile=True)
    for model in made.models:
        compile_layers(model, backend="eager", sizes=sizes)
    return made


def padded(build):
    """The generator with ``--compile``, padded as on a GPU; the functions are called as they are."""
    made = traced(build, FEW)
    for model in made.models:
        for side in (model.encoder.compiled, model.decoder.compiled):
            side.compile = lambda device, side=side: side.function
    return made


def same(wanted, found) -> None:
    """Raise unless two lists of hypotheses have the same tokens, and scores that differ by rounding."""
    for ours, theirs in zip(wanted, found):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for one, other in zip(ours, theirs):
            assert torch.allclose(one["positional_scores"], other["positional_scores"], atol=1e-4)


@pytest.mark.parametrize("served", SERVED)
def test_the_tokens_of_padded_batches_are_those_without_it(served):
    build = SERVED[served]()
    plain, compiled = build(), padded(build)
    source = source_batch(LENGTHS, words=20)
    wanted = decode(plain, source)
    same(wanted, decode(compiled, source))
    for row in (0, 3, 5):  # alone, too
        same(wanted[row : row + 1], decode(compiled, source[row : row + 1, : LENGTHS[row]]))


@pytest.mark.parametrize(
    "build",
    (
        lambda: one_pass(*ONE_LAYER),
        lambda: iterative(*ONE_LAYER, "--checkpoint-activations", iterations=2),
        lambda: iterative(*ONE_LAYER, iterations=2, decode_dtype="bfloat16"),  # where padding changes the rounding
    ),
    ids=("nat", "cmlm", "bfloat16"),
)
def test_the_tokens_of_traced_graphs_are_those_without_it(build, monkeypatch):
    """Those of the plain layers, which are compiled: in bfloat16 others round otherwise."""
    monkeypatch.setattr("nar_plugins.models.base.fast_form", lambda side: None)
    build = build()
    source = source_batch(LENGTHS, words=20)
    same(decode(build(), source), decode(traced(build), source))
    assert counters["stats"]["unique_graphs"] > 0


@needs_compiler
def test_compiled_tokens_are_those_without_it():
    build = one_pass(*ONE_LAYER)
    source = source_batch(LENGTHS, words=20)
    same(decode(build(), source), decode(build(compile=True), source))


def test_few_graphs_serve_all_sizes():
    compiled = traced(iterative(*ONE_LAYER, iterations=3))
    for lengths in ([5, 3], [9], [4] * 7, [11, 2, 3], [2], [30, 8], [6] * 3, [1]):
        decode(compiled, source_batch(lengths, words=20))
    # encoder: one sentence, several; decoder: the same, with all positions and with some
    assert counters["stats"]["unique_graphs"] == 6


def test_a_gpus_batches_are_padded_to_few_sizes():
    assert sorted({few_tokens(count) for count in range(1, 257)}) == [
        *range(8, 65, 8),
        *range(80, 129, 16),
        *range(160, 257, 32),
    ]
    assert {FEW.sentences(count) for count in range(1, 65)} == {1, 2, 4, 8, 16, 32, 64}
    shapes = []
    compiled = padded(SERVED["mask_predict"]())
    side = compiled.models[0].decoder.compiled
    function = side.function
    side.function = lambda layers, x, *rest: shapes.append(tuple(x.shape[:2])) or function(layers, x, *rest)
    decode(compiled, source_batch([5, 3, 4], words=20))
    assert {(rows, width % 8) for rows, width in shapes} == {(4 * 5, 0)}


def test_weights_that_change_are_read():
    model, task = nat()
    compiled = padded(lambda **more: generator("one_pass", [model], task, **more))
    source = source_batch(LENGTHS, words=20)
    before = decode(compiled, source)
    other, _ = nat(seed=5)
    model.load_state_dict(other.state_dict())
    after = decode(compiled, source)
    same(decode(generator("one_pass", [model], task), source), after)
    assert [h[0]["tokens"].tolist() for h in before] != [h[0]["tokens"].tolist() for h in after]


def test_the_users_model_and_generators_without_it_are_not_compiled():
    build = SERVED["mask_predict"]()
    plain, compiled = build(), build(compile=True)
    assert compiled.models[0] is not plain.models[0]
    assert plain.models[0].decoder.compiled is None and compiled.models[0].decoder.compiled is not None


def test_a_rescorer_is_not_compiled():
    assert not any(hasattr(side, "compiled") for side in noisy_parallel()(compile=True).others[0].children())


def test_a_hook_is_named():
    model, task = nat()
    compiled = padded(lambda **more: generator("one_pass", [model], task, **more))
    model.decoder.layers[0].fc1.register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match="--compile: a PreparedLinear has a hook, which would not be called"):
        decode(compiled, source_batch(LENGTHS, words=20))


@pytest.mark.parametrize(
    "settings, message",
    (
        (dict(decode_dtype="int8"), "--compile: --decode-dtype int8 has kernels of its own"),
        (dict(retain_dropout=True), "--compile: --retain-dropout would drop other units"),
    ),
)
def test_what_does_not_go_together_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        iterative()(compile=True, **settings)


def test_a_generator_without_it_refuses_it():
    with pytest.raises(ValueError, match="--compile is no option of --generator blockwise: leave it out"):
        refuse_foreign(with_defaults(compile=True), "blockwise")


def with_defaults(**settings):
    """The options of all generators."""
    defaults = {f.name: f.default for config in CONFIGS.values() for f in fields(config) if f.name[0] != "_"}
    return SimpleNamespace(**{**defaults, **settings})


def test_a_machine_without_a_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="--compile: no C\\+\\+ compiler no-such-compiler is found: install one or"):
        one_pass()(compile=True)


def test_other_devices_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "this PyTorch has no triton" in compiler_lacks(torch.device("cuda"))
    model, _ = nat()
    with pytest.raises(ValueError, match="--compile: it is for CPUs and NVIDIA's GPUs, and this is meta"):
        prepare_for_decoding(model.to("meta"), "float32", compiled=True)


def test_a_model_with_other_layers_is_named():
    with pytest.raises(ValueError, match="--compile: a Graphs has no layers that it could compile"):
        compile_layers(Graphs([]))


def test_what_pytorch_cannot_compile_is_said_in_one_line():
    function = CompiledFunction(lambda layers, x: torch._dynamo.graph_break() or [x], [], backend="eager")
    with pytest.raises(ValueError, match="^--compile: PyTorch could not compile the layers [^\n]*leave it out$"):
        function(torch.device("cpu"), torch.ones(3))
