"""The contract of nar_plugins/models/contract.py: generators ask nothing else, and what lacks a part is refused."""

import ast
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import source_batch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqEncoderDecoderModel
from fairseq.tasks import register_task
from hydra.core.config_store import ConfigStore
from tiny import arguments, dictionary, model, task

import nar_plugins
from nar_plugins.data import noise
from nar_plugins.data.dictionary import add_mask
from nar_plugins.generators import registry
from nar_plugins.generators.options import generation_options
from nar_plugins.models.base import NarModel
from nar_plugins.models.cmlm import CmlmModel
from nar_plugins.models.contract import Canvas, CanvasModel, Memory, Plan
from nar_plugins.tasks.translation import NarTranslationTask

PAD, EOS, MASK, V = 1, 2, 24, 25
CONTRACT = {name for name in [*vars(CanvasModel), *CanvasModel.__annotations__] if not name.startswith("_")}
GENERATORS = Path(nar_plugins.__file__).parent / "generators"


# -- a model that has the contract and nothing else ------------------------------------------------------------------


class Double:
    """Predicts a sentence of 3 + its source's first token mod 3 tokens: that token at every position, and </s>.

    Every attribute that is asked of it is recorded, and one that is not in the contract does not exist.
    """

    generators = ("mask_predict", "one_pass")
    predicts, blank, canvas_kind, length_classes = "lengths", None, (), 12

    def __init__(self):
        self.asked, self.passes = set(), []

    def __getattribute__(self, name):
        if name in CONTRACT:
            object.__getattribute__(self, "asked").add(name)
        return object.__getattribute__(self, name)

    def encode(self, src_tokens, src_lengths=None):
        return Memory([src_tokens[:, None, :, None]], [], None, {"first": src_tokens[:, 0]})

    def length_lprobs(self, memory):
        lengths = 4 + memory.encoded["first"] % 3
        return torch.nn.functional.one_hot(lengths, self.length_classes).float().mul(20).log_softmax(-1)

    def canvas(self, memory, plan):
        places = torch.arange(int(plan.lengths.max()))
        padding = places >= plan.lengths.unsqueeze(1)
        return Canvas(torch.where(padding, PAD, MASK), padding if bool(padding.any()) else None)

    def decode(self, canvas, memory, picked=None):
        self.passes.append((canvas, picked))
        candidates = len(canvas.inputs) // len(memory.encoded["first"])
        tokens = memory.encoded["first"].repeat_interleave(candidates).unsqueeze(1).repeat(1, canvas.inputs.size(1))
        tokens = tokens.scatter(1, canvas.lengths().unsqueeze(1) - 1, EOS)
        features = torch.nn.functional.one_hot(tokens, V).float()
        return features if picked is None else features.gather(1, picked.unsqueeze(-1).expand(-1, -1, V))

    def project(self, features):
        return features * 10

    def max_decoder_positions(self):
        return self.length_classes - 1

    def eval(self):  # a module's, like modules
        return self

    def modules(self):
        return []


def decode(name, models, **settings):
    """The first hypothesis of every sentence."""
    words = dictionary(20)
    add_mask(words)
    options = {f.name: f.default for f in fields(registry.CONFIGS[name]) if not f.name.startswith("_")}
    config = SimpleNamespace(**{**options, **settings})
    loop = registry.GENERATORS[name](models, words, config, generation_options(SimpleNamespace()), MASK)
    source = source_batch([4, 6, 3], 20)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    return source, [hypos[0]["tokens"].tolist() for hypos in loop.generate(models, sample)]


@pytest.mark.parametrize("name, settings", [("mask_predict", {"iterations": 3}), ("one_pass", {"length_beam": 2})])
def test_a_model_that_has_the_contract_and_nothing_else_is_decoded(name, settings):
    double = Double()
    source, found = decode(name, [double], **settings)
    firsts = source[:, 0].tolist()
    assert found == [[first] * (3 + first % 3) + [EOS] for first in firsts]
    assert len(double.passes) == settings.get("iterations", 1)
    assert {"encode", "canvas", "decode", "project", "length_lprobs"} <= double.asked <= CONTRACT
    assert set(registry.GENERATORS[name].needs) <= double.asked | {"max_decoder_positions"}


def test_mask_predict_asks_later_passes_for_the_masked_positions_only():
    double = Double()
    decode("mask_predict", [double], iterations=3, length_beam=1)
    widths = [canvas.inputs.size(1) if picked is None else picked.size(1) for canvas, picked in double.passes]
    longest = max(4 + int(first) % 3 for first in source_batch([4, 6, 3], 20)[:, 0])
    assert widths == [longest, longest * 2 // 3, longest // 3]
    assert all(bool(canvas.inputs.eq(MASK).any(1).all()) for canvas, _ in double.passes)


def asked_of_models(source: str) -> set:
    """The attributes that a file of generators reads of models: of ``model``, ``m`` and an element of ``models``."""

    def is_model(node) -> bool:
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, (ast.Attribute, ast.Name)) and "models" in ast.unparse(node.value).split(".")
        return isinstance(node, ast.Name) and node.id in ("model", "m")

    tree = ast.parse(source)
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_model(node.value)}
    for node in ast.walk(tree):
        called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if called in ("getattr", "hasattr") and is_model(node.args[0]):
            found.add(ast.literal_eval(node.args[1]))
    return found


def test_generators_of_canvases_touch_nothing_else_of_a_model():
    files = [path for path in (GENERATORS / "canvas").glob("*.py") if path.name != "rescore.py"]  # whose model is AR
    asked = set().union(*(asked_of_models(path.read_text(encoding="utf-8")) for path in files))
    assert asked <= CONTRACT
    assert {"encode", "canvas", "decode", "project", "length_lprobs", "fertility_lprobs"} <= asked
    for path in files:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"decoder", "encoder", "args", "output_layer"}, path


def test_generators_from_left_to_right_ask_for_a_block_decoder_and_fairseqs_encoder():
    files = (GENERATORS / "left_to_right").rglob("*.py")
    asked = set().union(*(asked_of_models(path.read_text(encoding="utf-8")) for path in files))
    of_fairseq = {"encoder", "full_context_alignment", "max_positions", "max_decoder_positions", "eval", "to"}
    assert {"block_decoder", "encoder"} <= asked <= {"block_decoder", "generators"} | of_fairseq


def test_the_search_for_attributes_finds_them():
    text = "[m.decoder(x) for m in self.models]; self.models[0].args; getattr(model, 'encoder'); models.append(1)"
    assert asked_of_models(text) == {"decoder", "args", "encoder"}


# -- memories and canvases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["cmlm_tiny", "nat_tiny", "dag_tiny"])
def test_a_selected_memory_is_that_of_the_selected_sentences(arch):
    one = model(arch=arch)[0].eval()
    source, sentences = source_batch([5, 3, 4], 20), torch.tensor([2, 0, 0])
    whole, part = one.encode(source).select(sentences), one.encode(source[sentences])
    for mine, theirs in zip((*whole.keys, *whole.values), (*part.keys, *part.values)):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(whole.allowed, part.allowed) and whole.encoded.keys() == part.encoded.keys()
    for name in whole.encoded:
        torch.testing.assert_close(whole.encoded[name], part.encoded[name])


def test_a_canvas_knows_its_lengths_with_and_without_padding():
    tokens = torch.tensor([[9, 9, 1], [9, 9, 9]])
    canvas = Canvas(tokens, tokens.eq(1))
    assert canvas.lengths().tolist() == [2, 3] and canvas.real().tolist() == tokens.ne(1).tolist()
    assert canvas.select(torch.tensor([1, 1])).lengths().tolist() == [3, 3]
    whole = Canvas(torch.zeros(2, 4, 8), None)
    assert whole.lengths().tolist() == [4, 4] and whole.select(torch.tensor([0])).inputs.shape == (1, 4, 8)


@pytest.mark.parametrize(
    "flags", [(), ("--source-copy", "uniform"), ("--source-copy", "uniform", "--no-mask-diagonal")]
)
def test_the_picked_positions_of_a_nat_are_those_of_all(flags):
    one = model(*flags, arch="nat_tiny")[0].eval()
    memory = one.encode(source_batch([5, 3], 20))
    lengths = torch.tensor([4, 3])
    plan = Plan(torch.arange(2), lengths, torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 0, 0]]))
    canvas, picked = one.canvas(memory, plan), torch.tensor([[2, 0], [1, 1]])
    every = one.decode(canvas, memory)
    torch.testing.assert_close(one.decode(canvas, memory, picked), every[torch.arange(2).unsqueeze(1), picked])


# -- what is refused, and when ---------------------------------------------------------------------------------------


def test_a_model_without_a_method_of_the_contract_is_refused_when_its_class_is_made():
    with pytest.raises(ValueError, match="^Blank names the generator 'one_pass' and has no method 'canvas': define it"):

        class Blank(NarModel):
            generators = ("one_pass",)

    with pytest.raises(ValueError, match="^Untrained names the generator 'one_pass' and has no method 'forward'"):

        class Untrained(NarModel):
            generators = ("one_pass",)

            def canvas(self, memory, plan):
                """A canvas."""


def test_a_base_of_models_may_lack_them_and_one_without_generators_too():
    class Base(NarModel, abstract=True):
        generators = ("one_pass",)

    class Silent(NarModel):
        """Is not decoded."""

    with pytest.raises(ValueError, match="^Final names the generator 'one_pass' and has no method 'canvas'"):

        class Final(Base):
            """Says no longer that it is a base."""

    assert Base.generators and not Silent.generators


@pytest.fixture
def architecture(monkeypatch):
    """A function class -> the task and a configuration of ``--arch other`` of this class."""

    def make(cls):
        monkeypatch.setitem(ARCH_MODEL_REGISTRY, "other", cls)
        return task(), SimpleNamespace(arch="other", _name="other")

    return make


@pytest.mark.parametrize(
    "names, methods, message",
    [
        (
            ("one_pass",),
            ("encode", "canvas", "project"),
            "Other names the generator 'one_pass' and has no method 'decode'",
        ),
        (
            ("mask_predict",),
            ("encode", "canvas", "decode", "project"),
            "'mask_predict' and has no method 'length_lprobs'",
        ),
        (("two_pass",), (), "Other names the generator 'two_pass', which is not registered: register it"),
    ],
)
def test_a_model_of_another_base_is_refused_before_it_is_built(architecture, names, methods, message):
    other = type(
        "Other", (FairseqEncoderDecoderModel,), {"generators": names, **dict.fromkeys(methods, lambda self: 0)}
    )
    its_task, cfg = architecture(other)
    with pytest.raises(ValueError, match=message) as error:
        its_task.build_model(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", [CmlmModel, *(ARCH_MODEL_REGISTRY[name] for name in ("nat", "dag", "bang"))])
def test_the_models_of_this_package_have_what_their_generators_call(cls):
    registry.check_model(cls)


def options(**given):
    """A generator's dataclass with these fields, of the type of their value."""
    namespace = {name: field(default=value, metadata={"help": "x"}) for name, value in given.items()}
    annotations = {name: type(value) for name, value in given.items()}
    return dataclass(type("Options", (registry.SharedGeneratorConfig,), {**namespace, "__annotations__": annotations}))


@pytest.mark.parametrize(
    "given, owner",
    [
        ({"iterations": 3}, "an option of generator mask_predict with another meaning"),
        ({"dedup": True}, "an option of generator (mask_predict|dag|bang) with another meaning"),
        ({"beam": 3}, "a flag of fairseq"),
        ({"lr_scheduler": "x"}, "a flag of fairseq"),
        ({"adam_betas": "x"}, "a flag of fairseq"),
        ({"arch": "x"}, "a flag of fairseq"),
        ({"eval_bleu_tokenize": "x"}, "a flag of --task nar_translation"),
        ({"generator": "x"}, "a flag of --task nar_translation"),
        ({"dropout": 0.5}, "a flag of --arch bang"),
        ({"glancing": "x"}, "a flag of --arch (dag|nat)"),
        ({"length_loss_factor": 0.5}, "a flag of --criterion nar_loss"),
    ],
)
def test_a_flag_that_is_taken_is_refused_when_the_generator_is_registered(given, owner):
    flag = f"--{next(iter(given)).replace('_', '-')}"
    with pytest.raises(ValueError, match=f"^generator mine: {flag} is {owner}: rename it$"):
        registry.register_generator("mine", dataclass=options(**given))(type("Mine", (), {}))
    assert "mine" not in registry.GENERATORS


def test_a_generators_name_and_a_noises_name_are_taken_once():
    with pytest.raises(ValueError, match="^generator one_pass is registered twice$"):
        registry.register_generator("one_pass", dataclass=options(mine=1))(type("Mine", (), {}))
    with pytest.raises(ValueError, match="^noise uniform is registered twice$"):
        noise.register_noise("uniform")(lambda *given: given[0])
    assert noise.NOISES["uniform"] is noise.uniformly_masked


def test_an_unknown_noise_is_refused_before_the_model_is_built():
    with pytest.raises(ValueError, match="^--target-noise spam does not exist: choose .*uniform$"):
        model("--target-noise", "spam")


@pytest.fixture
def restored():
    """Afterwards generators and tasks are registered as before."""
    tables = (registry.GENERATORS, registry.CONFIGS, registry.TASK_DATACLASS_REGISTRY, registry.TASK_REGISTRY)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)
    for name, options_ in registry.TASK_DATACLASS_REGISTRY.items():
        if name in registry.generating_tasks():
            registry.replace_dataclass(
                "task", name, registry.TASK_REGISTRY[name], registry.TASK_DATACLASS_REGISTRY, options_
            )


def test_a_generator_registered_later_has_flags_in_every_task_that_takes_options(restored):
    base = registry.TASK_DATACLASS_REGISTRY["nar_translation"]
    theirs = dataclass(type("TheirConfig", (base,), {"__annotations__": {"their_flag": int}, "their_flag": 4}))
    register_task("their_task", dataclass=theirs)(type("TheirTask", (NarTranslationTask,), {}))
    registry.register_generator("mine", dataclass=options(mine=1))(type("Mine", (), {}))
    # a task that is registered with a dataclass from before
    register_task("late_task", dataclass=base)(type("LateTask", (NarTranslationTask,), {}))
    for name in ("nar_translation", "their_task", "late_task"):
        args = arguments("--task", name, "--mine", "7", "--iterations", "3")
        assert (args.mine, args.iterations, getattr(args, "their_flag", 4)) == (7, 3, 4)
        config = convert_namespace_to_omegaconf(args).task
        assert (config._name, config.mine) == (name, 7)
        stored = ConfigStore.instance().load(f"task/{name}.yaml").node
        assert stored.mine == 1 and stored._name == name
    assert registry.default_of("mine") == 1
