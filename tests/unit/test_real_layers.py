"""The layers over packed sentences in int8 and float32: those of the plain form, no padding is multiplied, refusals."""

import pytest
import torch
from conftest import source_batch
from test_one_pass import generator, nat
from torch.utils._python_dispatch import TorchDispatchMode

from nar_plugins.models.contract import Canvas
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16
from nar_plugins.modules.fast.layer import Parts
from nar_plugins.modules.fast.prepare import prepare_for_decoding
from nar_plugins.modules.fast.real_layers import PACKING, RealStates, fast_form

needs_int8 = pytest.mark.skipif(int8_lacks(torch.device("cpu")) is not None, reason="no int8 on this processor")
needs_half = pytest.mark.skipif(not fbgemm_has_float16(), reason="no float16 weights on this processor")
FORMS = {  # type, the multiplications that a sentence's own calls of attention cost, most and mean deviation
    "int8": ("int8", None, 0.2, 0.005),  # a number almost halfway is rounded up in one form only
    "float32, packed": ("float32", 1, 1e-4, 1e-5),
    "float32, as it is": ("float32", 1 << 60, 1e-4, 1e-5),
    "float16, packed": ("float16", 1, 1e-4, 1e-5),
    "float16, as it is": ("float16", 1 << 60, 1e-4, 1e-5),
    "bfloat16, packed": ("bfloat16", 1, 0.2, 0.01),
    "bfloat16, as it is": ("bfloat16", 1 << 60, 0.2, 0.01),
}
forms = pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks={"int8": needs_int8, "float16": needs_half}.get(FORMS[form][0], ())) for form in FORMS],
)
types = pytest.mark.parametrize("dtype", [pytest.param("int8", marks=needs_int8), "float32"])
LENGTHS = [6, 3, 12, 2, 9, 1, 17, 30]
FLAGS = ("--source-copy", "uniform", "--no-positional-attention", "--no-mask-diagonal", "--no-layerwise-attention")


def all_batches(test):
    """A test of every form for every kind of batch, number of canvases and place of the norms."""
    test = pytest.mark.parametrize("lengths", [LENGTHS, [5, 5, 5], [4]], ids=["padded", "equal", "one"])(forms(test))
    test = pytest.mark.parametrize("canvases", [1, 3])(test)
    norms = ["", "--encoder-normalize-before --decoder-normalize-before"]
    return pytest.mark.parametrize("norm", norms, ids=["post", "pre"])(test)


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def prepared(*flags, dtype="int8"):
    """A model, and the one prepared of it."""
    one, _ = nat(*FLAGS, *flags)
    made = prepare_for_decoding(one, dtype)
    made.update(getattr(torch, dtype))
    return one, made.model


def prepared_for(form, monkeypatch, *flags):
    """The model prepared for one of ``FORMS``."""
    dtype, packing, *_ = FORMS[form]
    if packing is not None:
        monkeypatch.setitem(PACKING, getattr(torch, dtype), packing)
    return prepared(*flags, dtype=dtype)[1]


def assert_alike(found, wanted, form):
    _, _, most, mean = FORMS[form]
    apart = (found - wanted).abs() / wanted.std()
    assert apart.max() < most and apart.mean() < mean


def features_of(model, canvas, memory, picked=None):
    """The decoder's layers alone: ``nat`` picks after them, ``cmlm`` in the last one."""
    return model.decoder.through_layers(canvas.inputs, memory, canvas.padding, picked)


def both_forms(model, source, canvas, monkeypatch, picked=None):
    """Encoder states and decoder features of the fast and of the plain form."""
    half = model.decoder.layers[0].fc1.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return [*each_form(model, source, canvas, monkeypatch, picked)]


def each_form(model, source, canvas, monkeypatch, picked):
    for module in ("fast", "plain"):
        if module == "plain":
            monkeypatch.setattr("nar_plugins.models.base.fast_form", lambda side: None)
        memory = model.encode(source)
        yield model.encoder(source)["encoder_states"], features_of(model, canvas, memory, picked)


def sources(lengths):
    return source_batch(lengths, 20, seed=3)


def canvas_of(lengths, canvases: int = 1):
    """Canvases of embeddings, with other lengths than their sources'."""
    torch.manual_seed(4)
    sizes = torch.tensor([length + 2 + number for length in lengths[::-1] for number in range(canvases)])
    padding = torch.arange(int(sizes.max())) >= sizes.unsqueeze(1)
    return Canvas(torch.randn(*padding.shape, 64), padding if padding.any() else None)


@all_batches
def test_the_states_are_those_of_the_plain_form(monkeypatch, no_gradients, lengths, canvases, norm, form):
    model = prepared_for(form, monkeypatch, *norm.split())
    source, canvas = sources(lengths), canvas_of(lengths, canvases)
    (states, features), (plain_states, plain_features) = both_forms(model, source, canvas, monkeypatch)
    assert model.encoder.fast is not None and model.decoder.fast is not None and len(states) == len(plain_states)
    real, seen = source.ne(1).T, canvas.real()
    for found, wanted in zip(
        (*(s[real] for s in states), features[seen]), (*(s[real] for s in plain_states), plain_features[seen])
    ):
        assert_alike(found, wanted, form)


def some_positions(canvas, count: int):
    """(R, count) int64, in no order; of a canvas that is shorter some are padding."""
    torch.manual_seed(5)
    return torch.stack([torch.randperm(canvas.inputs.size(1))[:count] for _ in canvas.inputs])


@all_batches
def test_picked_states_are_those_of_the_plain_form(monkeypatch, no_gradients, lengths, canvases, norm, form):
    model = prepared_for(form, monkeypatch, *norm.split())
    source, canvas = sources(lengths), canvas_of(lengths, canvases)
    picked = some_positions(canvas, 3)
    (_, features), (_, wanted) = both_forms(model, source, canvas, monkeypatch, picked)
    seen = canvas.real().gather(1, picked)
    assert features.shape == (*picked.shape, 64)
    assert form.endswith("as it is") or not features[~seen].any()
    assert_alike(features[seen], wanted[seen], form)


@needs_int8
def test_a_sentence_has_the_same_states_bit_for_bit_in_every_batch(no_gradients):
    _, model = prepared()
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    together, sizes = model.decode(canvas, model.encode(source)), canvas.lengths().tolist()
    for b, length in enumerate(LENGTHS):
        alone = Canvas(canvas.inputs[b : b + 1, : sizes[b]], None)
        features = model.decode(alone, model.encode(source[b : b + 1, :length]))
        assert torch.equal(features[0], together[b, : sizes[b]])


@needs_int8
def test_no_padding_is_multiplied(no_gradients, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)  # one kernel, whatever the processor has
    _, model = prepared()
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    memory, seen = model.encode(source), []
    picked = some_positions(canvas, 5)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._int_mm.default:
                seen.append(args[0].size(0))
            return func(*args, **(kwargs or {}))

    with Watch():
        model.decode(canvas, memory)
    assert set(seen) == {sum(canvas.lengths().tolist())} and sum(canvas.lengths().tolist()) < canvas.padding.numel()
    with Watch():
        features_of(model, canvas, memory, picked)
    assert seen[-1] == int(canvas.real().gather(1, picked).sum()) < picked.numel()


def test_a_batch_with_much_padding_is_packed_in_float32_and_one_with_little_is_not(no_gradients):
    def packed(lengths, dim):
        padding = torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)
        return RealStates.of(torch.empty(*padding.shape, dim), padding, PACKING[torch.float32]).slots is not None

    assert packed([3, 30, 12, 20], 128) and packed([19, 20, 18], 512)
    assert not packed([19, 20, 18], 128) and not packed([3, 20], 64)


@needs_int8
def test_a_canvas_without_a_position_is_left_out(no_gradients):
    _, model = prepared()
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    wanted = model.decode(canvas, model.encode(source))
    canvas.padding[2] = True
    found = model.decode(canvas, model.encode(source))
    others = torch.arange(len(LENGTHS)) != 2
    assert torch.equal(found[others], wanted[others]) and not found[2].any()


def test_packed_states_are_unpacked_to_their_places():
    x, padding = torch.arange(24.0).view(2, 4, 3), torch.tensor([[False, False, True, True], [False] * 4])
    real = RealStates.of(x, padding)
    assert real.lengths == [2, 4] and torch.equal(real.pack(x), torch.cat([x[0, :2], x[1]]))
    assert torch.equal(real.unpack(real.pack(x)), x.masked_fill(padding.unsqueeze(-1), 0))


@types
def test_new_weights_are_read(no_gradients, dtype):
    one, model = prepared(dtype=dtype)
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    before = model.decode(canvas, model.encode(source))
    fast = model.decoder.fast
    assert fast_form(model.decoder) is fast
    one.decoder.layers[0].fc2.weight.mul_(2)
    prepare_for_decoding(one, dtype).update(getattr(torch, dtype))
    after = model.decode(canvas, model.encode(source))
    assert model.decoder.fast is not fast and not torch.equal(before, after)


@types
def test_a_hook_of_a_users_sees_padded_states_of_the_plain_form(no_gradients, dtype):
    one, model = prepared(dtype=dtype)
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    memory, shapes = model.encode(source), []
    hook = one.decoder.layers[1].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    model.decode(canvas, memory)
    hook.remove()
    assert fast_form(model.decoder) is not None
    model.decode(canvas, memory)
    assert shapes == [canvas.inputs.shape]


GU = {
    "diagonal": ("--mask-diagonal", "--decoder-normalize-before"),
    "positions": ("--positional-attention",),
    "both": ("--mask-diagonal", "--positional-attention", "--layerwise-attention"),
    "both, before": ("--mask-diagonal", "--positional-attention", "--decoder-normalize-before"),
}


@pytest.mark.parametrize("flags", GU.values(), ids=GU)
@pytest.mark.parametrize("lengths", [LENGTHS, [5, 5, 5]], ids=["padded", "equal"])
@forms
def test_gus_layers_are_those_of_the_plain_form(monkeypatch, no_gradients, flags, lengths, form):
    model = prepared_for(form, monkeypatch, *flags)
    source, canvas = sources(lengths), canvas_of(lengths)
    found = []
    for module in ("fast", "plain"):
        if module == "plain":
            assert model.decoder.fast is not None
            monkeypatch.setattr("nar_plugins.models.base.fast_form", lambda side: None)
        with torch.autocast("cpu", torch.bfloat16, enabled=model.decoder.layers[0].fc1.dtype == torch.bfloat16):
            found.append(model.decode(canvas, model.encode(source))[canvas.real()])
    assert_alike(*found, form)


@types
def test_a_canvas_of_one_position_sees_itself(no_gradients, dtype):
    _, model = prepared("--mask-diagonal", dtype=dtype)
    source = sources([3, 3])
    one = Canvas(torch.randn(2, 1, 64), None)
    padded = Canvas(torch.cat([one.inputs, torch.randn(2, 2, 64)], 1), torch.tensor([[False, True, True]] * 2))
    memory = model.encode(source)
    alone, within = model.decode(one, memory), model.decode(padded, memory)[:, :1]
    assert alone.isfinite().all()
    torch.testing.assert_close(within, alone)


@pytest.mark.parametrize("other", ["mask", "layer"])
@types
def test_other_masks_and_layers_have_the_plain_form(monkeypatch, no_gradients, other, dtype):
    _, model = prepared(dtype=dtype)
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    if other == "mask":
        hidden = torch.arange(canvas.inputs.size(1)) > 1
        mask = {"allowed_positions": lambda self, padding, x: ~(padding | hidden)[:, None, None]}
        model.decoder.__class__ = type("Own", (type(model.decoder),), mask)
    else:
        layer = model.decoder.layers[0]
        layer.__class__ = type("Own", (type(layer),), {})
    monkeypatch.setattr("nar_plugins.modules.fast.real_layers.RealLayers.features", None)
    assert model.decode(canvas, model.encode(source)).shape == canvas.inputs.shape


@needs_int8
def test_a_first_position_repeated_is_computed_once(no_gradients):
    _, model = prepared()
    source, canvas = sources(LENGTHS), canvas_of(LENGTHS)
    memory = model.encode(source)
    picked = torch.stack([torch.arange(3)] * len(LENGTHS))
    whole = features_of(model, canvas, memory, picked)
    counts = torch.tensor([1, 2, 3] * 3)[: len(LENGTHS)].unsqueeze(1)
    chosen = torch.arange(3) < counts
    features = features_of(model, canvas, memory, torch.where(chosen, picked, picked[:, :1]))
    assert_alike(features[chosen], whole[chosen], "int8")
    assert not features[~chosen].any()


def test_other_types_have_the_plain_form(no_gradients, monkeypatch):
    one, _ = nat(*FLAGS)
    with monkeypatch.context() as patched:  # its modules are not looked at in every pass, on a GPU for example
        patched.setattr(Parts, "of", None)
        assert fast_form(one.encoder) is None is fast_form(one.decoder)
    made = prepare_for_decoding(one, "float16")
    made.update(torch.float16)
    assert (fast_form(made.model.encoder) is not None) == fbgemm_has_float16()
    made = prepare_for_decoding(one, "bfloat16")
    made.update(torch.bfloat16)
    assert fast_form(made.model.encoder) is None is fast_form(made.model.decoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_form(made.model.encoder) is not None is not fast_form(made.model.decoder)
    made = prepare_for_decoding(one, "float32")
    made.update(torch.float32)
    assert fast_form(made.model.encoder) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_form(made.model.encoder) is None
    with torch.enable_grad():
        assert fast_form(made.model.encoder) is None


@types
def test_dropout_while_decoding_has_the_plain_form(no_gradients, dtype):
    _, model = prepared("--dropout", "0.5", dtype=dtype)
    assert fast_form(model.decoder) is not None
    for module in model.decoder.layers[0].modules():
        module.apply_during_inference = True
    assert fast_form(model.decoder) is None


@needs_int8
def test_scores_are_the_same_in_every_batch():
    one, task = nat("--ctc", *FLAGS)
    gen, source = generator("one_pass", [one], task, decode_dtype="int8"), sources(LENGTHS)

    def scores(source):
        sample = {"id": torch.arange(len(source)), "net_input": {"src_tokens": source}}
        return [float(hypotheses[0]["score"]) for hypotheses in gen.generate([one], sample)]

    assert scores(source) == [scores(source[b : b + 1, :n])[0] for b, n in enumerate(LENGTHS)]
