"""Weights in float16 on a CPU: float32's numbers but for the rounding of the weights, through every fast form."""

from argparse import Namespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import mask_predict, random_model, source_batch
from saved import save
from test_fast import LENGTHS, MAKERS, of_cmlm, unshared, words  # noqa: F401  (a fixture)
from tiny import model as tiny_model

from nar_plugins.modules.fast import block_layers, choice, half_weights, linear
from nar_plugins.modules.fast.block_layers import function, plain
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16, half_weight_product, keeps_weights_in_half
from nar_plugins.modules.fast.linear import PreparedLinear, plain_product, product
from nar_plugins.modules.fast.prepare import prepare_for_decoding

needs_half = pytest.mark.skipif(not fbgemm_has_float16(), reason="no float16 weights on this processor")
HALF = torch.float16


def round_weights(model: nn.Module) -> None:
    """Round the weights of the linear layers, so that float32 computes with float16's."""
    with torch.no_grad():
        for layer in (m for m in model.modules() if type(m) is nn.Linear):
            layer.weight.copy_(layer.weight.half())


@needs_half
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 512, 512), (7, 64, 48), (33, 130, 3000), (300, 1024, 130)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_product_is_that_of_the_rounded_weight(rows, inputs, outputs, biased):
    torch.manual_seed(1)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    bias = torch.randn(outputs) if biased else None
    wanted = F.linear(x, weight.half().float(), bias)
    for compute in (product(weight, bias, HALF), plain_product(weight, bias, HALF)):
        found = compute(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(F.linear(x, weight, bias), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(product(weight, bias, HALF)(x.view(rows, 1, inputs)).squeeze(1), product(weight, bias, HALF)(x))
    assert product(weight, bias, HALF)(x[:0]).shape == (0, outputs)


@needs_half
def test_layers_side_by_side_are_one_product():
    layers = [PreparedLinear(nn.Linear(64, 40)._parameters) for _ in range(3)]
    for layer in layers:
        layer.prepare(HALF)
        assert plain(layer) and layer.in_float32
    x = torch.randn(5, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            function(*layers)(x), torch.cat([layer(x) for layer in layers], 1), rtol=1e-5, atol=1e-5
        )
    large = PreparedLinear(nn.Linear(512, 300)._parameters)
    large.prepare(HALF)
    assert function(large) is large.product


@needs_half
@pytest.mark.usefixtures("unshared")
@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("large", [False, True])
def test_words_are_those_of_float32_with_rounded_weights(name, large, monkeypatch):
    for module in (linear, block_layers) if large else ():
        monkeypatch.setattr(module, "SMALL", 0)
    one, gen = MAKERS[name]("float16")
    source = source_batch(LENGTHS, 20)
    found = words(gen, source)
    other, exact = MAKERS[name]("float32")
    round_weights(other)
    assert words(exact, source) == found


@needs_half
def test_nothing_is_autocast_and_scores_are_float32():
    _, gen = of_cmlm("float16")
    with gen.decoding(torch.ones(1, 2, dtype=torch.int64), lean=True):
        assert not torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
    _, gen = of_cmlm("bfloat16")
    with gen.decoding(torch.ones(1, 2, dtype=torch.int64), lean=True):
        assert torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()


@needs_half
@pytest.mark.parametrize("number", [float("nan"), 7e4, -float("inf")])
def test_a_weight_that_float16_does_not_hold_is_refused(number):
    one, _ = random_model()
    one.decoder.layers[0].fc1.weight.data[1, 2] = number
    message = r"^--decode-dtype float16: decoder\.layers\.0\.fc1\.weight is NaN or larger than float16 holds: use"
    with pytest.raises(ValueError, match=message):
        prepare_for_decoding(one, "float16").update(HALF)
    assert HALF not in choice.candidates(one)


@needs_half
def test_auto_leaves_models_in_other_types_alone(monkeypatch):
    monkeypatch.setattr(choice, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(choice, "product_seconds", lambda shape, types: [float(t == torch.float32) for t in types])
    source = source_batch(LENGTHS, 20)
    _, gen = of_cmlm("auto")
    words(gen, source)
    assert gen.prepared[0].chosen == {True: HALF}
    one, gen = of_cmlm("auto")
    one.double()
    words(gen, source)
    assert gen.prepared[0].chosen == {True: torch.float32}
    (one, task), (other, _) = random_model(words=20), random_model(words=20)
    other.bfloat16()
    for models in ([one, other], [other, one]):
        gen = mask_predict(models, task.target_dictionary, task.mask_index, decode_dtype="auto", max_len_b=30)
        assert len(words(gen, source)) == len(LENGTHS)


@needs_half
def test_auto_takes_float16_only_where_it_holds_all_models(monkeypatch):
    monkeypatch.setattr(choice, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(choice, "product_seconds", lambda shape, types: [float(t == torch.float32) for t in types])
    source = source_batch(LENGTHS, 20)
    (one, task), (fits, _), (large, _) = (random_model(words=20) for _ in range(3))
    large.decoder.layers[0].fc1.weight.data[1, 2] = 1e6
    for other, chosen in ((fits, HALF), (large, torch.float32), (fits, HALF)):  # what was chosen before is no answer
        models = [one, other]
        gen = mask_predict(models, task.target_dictionary, task.mask_index, decode_dtype="auto", max_len_b=30)
        assert len(words(gen, source)) == len(LENGTHS) and gen.dtype(source) == chosen


@needs_half
@pytest.mark.parametrize("number, chosen", [(1.0, HALF), (1e6, torch.float32)])
def test_auto_asks_the_rescorer_too(monkeypatch, tmp_path, number, chosen):
    monkeypatch.setattr(choice, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(choice, "product_seconds", lambda shape, types: [float(t == torch.float32) for t in types])
    path = save(tmp_path / "ar.pt", "transformer_tiny")
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.0.fc1.weight"][1, 2] = number
    torch.save(state, path)
    one, task = tiny_model()
    source = source_batch(LENGTHS, 20)
    gen = task.build_generator([one.eval()], Namespace(rescorer=str(path), decode_dtype="auto", max_len_b=6))
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}}
    assert len(gen.generate([one], sample)) == len(LENGTHS) and gen.dtype(source) == chosen


@needs_half
def test_the_size_is_what_a_decoding_reads():
    one, _ = random_model(words=3000)
    prepared = prepare_for_decoding(one, "float16")
    prepared.update(HALF)
    (large,) = {id(m.weight): m.weight for m in prepared.layers if m.weight.numel() >= linear.SMALL}.values()
    whole = sum(4 * parameter.numel() for parameter in one.parameters())
    assert prepared.weight_bytes() == whole + 2 * large.numel()  # the table of words is read in float32


@needs_half
def test_a_layer_without_outputs_or_inputs():
    assert half_weight_product(torch.empty(0, 4), None)(torch.ones(2, 4)).shape == (2, 0)


def test_other_devices_types_and_engines_are_left_to_autocast(monkeypatch):
    weight = torch.ones(8, 8)
    assert keeps_weights_in_half(weight, HALF) == fbgemm_has_float16()
    assert not keeps_weights_in_half(weight.half(), HALF) and not keeps_weights_in_half(weight.to("meta"), HALF)
    assert not keeps_weights_in_half(weight, torch.bfloat16) and not keeps_weights_in_half(weight, None)
    monkeypatch.setattr(half_weights.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not fbgemm_has_float16()
