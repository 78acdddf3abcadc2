"""Models prepared for decoding: exact int8 products, the user's model untouched, the weights of now, refusals."""

import copy
import gc
import logging
import sys
import threading
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from blockwise_twin import blockwise, random_models
from blockwise_twin import random_model as shared_model
from conftest import mask_predict, random_model, source_batch
from fairseq.modules.quantization.scalar import quantize_model_
from fairseq.optim.adam import Adam
from fairseq.sequence_generator import SequenceGenerator
from test_bang_generator import bang, random_bang
from test_one_pass import ar, generator, nat
from tiny import model as tiny_model
from tiny import task as tiny_task
from torch.utils._python_dispatch import TorchDispatchMode

from nar_plugins.compat import commands
from nar_plugins.generators.beam import BeamGenerator
from nar_plugins.generators.options import generation_options
from nar_plugins.measure.machine import counts_memory, memory, restart_peak
from nar_plugins.modules.attention import split_heads
from nar_plugins.modules.fast import choice, forms, half_weights, prepare
from nar_plugins.modules.fast import packed as packed_form
from nar_plugins.modules.fast.forms import int8_bytes, int8_lacks, kernels_work, pack
from nar_plugins.modules.fast.fused import FusedLinear
from nar_plugins.modules.fast.int8 import adds_in_16_bits, int8_product, quantise, quantise_weight
from nar_plugins.modules.fast.linear import PreparedLinear, given_back, product
from nar_plugins.modules.fast.packed import PackedWeight, packs
from nar_plugins.modules.fast.prepare import prepare_for_decoding
from nar_plugins.modules.fast.table import position_rows
from nar_plugins.modules.memory import Memory

needs_int8 = pytest.mark.skipif(int8_lacks(torch.device("cpu")) is not None, reason="no int8 on this processor")
needs_packing = pytest.mark.skipif(not packs(512, 512), reason="no VNNI, or PyTorch without its kernels")
LENGTHS = [6, 3, 12, 2, 9, 1, 17, 30]
SHAPES = [(1, 64, 48), (7, 64, 64), (33, 512, 200), (130, 96, 512)]


def sample_of(source) -> dict:
    return {"id": torch.arange(len(source)), "net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}}


# -- the product -------------------------------------------------------------------------------------------------------


def naive_int8(x, weight, bias):
    """Quantise, multiply whole numbers exactly, scale in float64: a number at a time in meaning, rows in form."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    low, high, scales = x.amin(1, keepdim=True), x.amax(1, keepdim=True), weight.abs().amax(1, keepdim=True) / 127
    row_scales = (high - low) / (128 if adds_in_16_bits() else 255)
    numbers, whole = ((x - low) / row_scales).round().long(), (weight / scales).round().long()
    return ((numbers @ whole.t()) * row_scales + low * whole.sum(1)) * scales.t() + bias


@needs_int8
@pytest.mark.parametrize("rows, inputs, outputs", SHAPES)
@pytest.mark.parametrize("vnni", [False, True])
def test_the_product_is_that_of_whole_numbers(rows, inputs, outputs, vnni, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    torch.manual_seed(1)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    found = int8_product(quantise_weight(weight), bias)(x)
    wanted = naive_int8(x, weight, bias)
    apart = (found - wanted).abs() / wanted.abs().mean()  # where a number is almost halfway, float32 may round it up
    assert apart.max() < 0.02 and (apart < 1e-5).float().mean() > 0.9
    error = (found - F.linear(x, weight, bias)).norm() / F.linear(x, weight, bias).norm()
    assert 1e-4 < error < (0.012 if vnni else 0.02)
    torch.testing.assert_close(int8_product(quantise_weight(weight), None)(x) + bias, found, rtol=1e-5, atol=1e-4)


@needs_packing
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 512, 512), (16, 300, 1000), (33, 1024, 130), (90, 128, 70000)])
def test_a_packed_weight_is_that_of_rows_bit_for_bit(rows, inputs, outputs):
    torch.manual_seed(1)
    weight, bias, x = quantise_weight(torch.randn(outputs, inputs)), torch.randn(outputs), torch.randn(rows, inputs)
    packed = pack(weight)
    assert type(packed) is PackedWeight and packed.rows_at_once() % packed_form.TILE == 0
    assert torch.equal(int8_product(packed, bias)(x), int8_product(weight, bias)(x))
    assert int8_product(packed, None)(x[:0]).shape == (0, outputs)
    indices = torch.randint(outputs, (3, 7))
    assert torch.equal(packed.rows(indices), weight.rows(indices))
    assert torch.equal(weight.rows(indices), (weight.numbers * weight.scales)[indices])
    taken = torch.ops.mkldnn._nbytes(packed.packed) + 4 * (packed.scales.numel() + packed.sums.numel())
    assert int8_bytes(torch.empty(outputs, inputs)) == taken


@needs_packing
def test_another_order_of_oneDNNs_leaves_a_weight_in_rows(monkeypatch):
    weight = quantise_weight(torch.randn(512, 512))
    monkeypatch.setattr(packed_form, "WIDTH", 32)
    assert pack(weight) is weight


@needs_packing
@pytest.mark.parametrize("amx", [False, True])
def test_rows_are_filled_up_to_tiles_where_these_cost_nothing_or_are_many(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    compute = int8_product(pack(quantise_weight(torch.randn(512, 512))), None)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.onednn.qlinear_pointwise.default:
                seen.append(args[0].size(0))
            return func(*args, **(kwargs or {}))

    with Watch():
        for rows in (1, 30, 64, 65, 80):
            compute(torch.randn(rows, 512))
    assert seen == ([16, 32, 64, 80, 80] if amx else [1, 30, 64, 80, 80])


def test_weights_are_packed_with_vnni_and_where_they_are_not_small(monkeypatch):
    weight = quantise_weight(torch.randn(512, 512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not packs(512, 512) and type(pack(weight)) is not PackedWeight
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    small = quantise_weight(torch.randn(256, 256))
    assert pack(small) is small and int8_bytes(torch.empty(256, 256)) == 256 * 264


@needs_int8
@pytest.mark.parametrize("outputs", [900, 3000])  # the second is packed
def test_a_row_does_not_depend_on_the_others(outputs):
    torch.manual_seed(1)
    compute = int8_product(pack(quantise_weight(torch.randn(outputs, 128))), torch.randn(outputs))
    x = torch.randn(3, 40, 128) * torch.rand(3, 40, 1) * 100
    together = compute(x)
    for rows in (1, 5, 40):
        assert torch.equal(torch.cat([compute(part) for part in x.flatten(0, 1).split(rows)]), together.flatten(0, 1))


@needs_int8
def test_rows_of_one_number_have_no_error_and_infinity_is_no_number():
    x = torch.randn(4, 32)
    x[1], x[2], x[3, 5] = 0, 3, float("inf")
    weight, bias = torch.randn(16, 32), torch.randn(16)
    int8 = quantise_weight(weight)
    found = int8_product(int8, bias)(x)
    assert torch.equal(found[1], bias) and found[3].isnan().all()
    torch.testing.assert_close(found[2], bias + 3 * (int8.numbers * int8.scales).sum(1))
    assert int8_product(int8, bias)(x[:0]).shape == (0, 16)


@needs_int8
def test_weights_that_are_not_finite_are_refused():
    one, _ = random_model()
    one.decoder.layers[1].final_layer_norm.bias.data[3] = float("nan")
    with pytest.raises(
        ValueError, match=r"^--decode-dtype int8: decoder\.layers\.1\.final_layer_norm\.bias is NaN or inf"
    ):
        prepare_for_decoding(one, "int8").update(torch.int8)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 30])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_rows_of_any_width_are_quantised(rows, width):
    torch.manual_seed(1)
    x = torch.randn(rows, width)
    found = quantise(x)
    again = found.numbers.float().round() * found.scales + found.offsets
    assert found.numbers.shape == x.shape and ((again - x).abs() <= 0.501 * found.scales).all()


@needs_int8
@pytest.mark.parametrize("own", ["float16", "bfloat16", "float64"])
def test_a_model_in_another_type_is_refused_in_one_line(own):
    one, gen = of_cmlm("int8")
    one.to(getattr(torch, own))
    with pytest.raises(ValueError, match=f"^--decode-dtype int8: the model is in {own}[^\n]*$"):
        words(gen, source_batch([3], 20))


@needs_int8
def test_a_table_may_be_tied_and_untied_after_the_first_batch():
    one, task = random_model(
        words=20, flags=("--encoder-embed-dim=512", "--decoder-embed-dim=512", "--decoder-output-dim=512")
    )
    gen = mask_predict([one], task.target_dictionary, task.mask_index, decode_dtype="int8", max_len_b=30)
    source = source_batch(LENGTHS, 20)
    tied = words(gen, source)
    projection = one.decoder.output_projection
    for embedding in (one.encoder.embed_tokens, one.decoder.embed_tokens):
        embedding.weight = nn.Parameter(projection.weight.detach().clone())
    assert words(gen, source) == tied and not gen.models[0].decoder.output_projection.looked_up
    one.decoder.embed_tokens.weight = projection.weight
    assert words(gen, source) == tied and gen.models[0].decoder.output_projection.looked_up


def test_quantised_numbers_use_the_whole_range(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    rows = quantise(torch.tensor([[-2.0, 0.0, 1.0, 3.1], [0.5, 0.25, 0.0, -0.01]]))
    assert rows.numbers.tolist() == [[0, 100, 150, 255], [255, 130, 5, 0]]
    assert rows.scales.flatten().tolist() == pytest.approx([5.1 / 255, 0.51 / 255])
    assert rows.offsets.flatten().tolist() == pytest.approx([-2, -0.01])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_autocast(dtype, monkeypatch):
    monkeypatch.setattr(half_weights, "fbgemm_has_float16", lambda: False)
    torch.manual_seed(1)
    layer, x = nn.Linear(64, 96), torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        wanted, found = layer(x), product(layer.weight, layer.bias, dtype)(x)
    assert found.dtype == wanted.dtype == dtype
    torch.testing.assert_close(found, wanted)


# -- generators --------------------------------------------------------------------------------------------------------


def of_cmlm(dtype, **settings):
    one, task = random_model(words=20)
    return one, mask_predict(
        [one], task.target_dictionary, task.mask_index, decode_dtype=dtype, max_len_b=30, iterations=3, **settings
    )


def of_nat(*flags, name="one_pass", **settings):
    def made(dtype):
        one, task = nat(*flags)
        rescorer = ar(task) if name == "noisy_parallel" else None
        return one, generator(name, [one], task, rescorer, decode_dtype=dtype, **settings)

    return made


def of_dag(dtype, **settings):
    one, task = nat("--upsample", "3", arch="dag_tiny")
    return one, generator("dag", [one], task, decode_dtype=dtype, **settings)


def of_blockwise(dtype):
    (one,), task = random_models("--decoder-normalize-before", "--block-head", "full", arch="blockwise_tiny")
    return one, blockwise([one], task, decode_dtype=dtype, max_len_b=20)


def of_bang(dtype):
    one, task = random_bang()
    return one, bang([one], task, decode_dtype=dtype)


def of_beam(dtype):
    one, task = tiny_model("--share-all-embeddings", arch="transformer_tiny", criterion="cross_entropy")
    search = SequenceGenerator([one], task.target_dictionary, beam_size=2, max_len_b=12)
    options = generation_options(Namespace())
    return one, BeamGenerator([one], task.target_dictionary, Namespace(decode_dtype=dtype), options, 24, search)


MAKERS = {
    "mask_predict": of_cmlm,
    "confidence": lambda dtype: of_cmlm(dtype, schedule="confidence"),
    "fertilities": of_nat(),
    "noisy parallel": of_nat(name="noisy_parallel", fertility_samples=4),
    "lengths": of_nat("--source-copy", "uniform"),
    "ctc": of_nat("--ctc", "--source-copy", "uniform"),
    "dag": of_dag,
    "best path": lambda dtype: of_dag(dtype, dag_decode="joint-viterbi"),
    "blockwise": of_blockwise,
    "bang": of_bang,
    "beam": of_beam,
}


PAPERS = ("positional-attention", "mask-diagonal", "layerwise-attention")  # Gu et al. 2018
ODD = [f"--{side}-{size}" for side in ("encoder", "decoder") for size in ("embed-dim=66", "attention-heads=2")]


@pytest.fixture
def unshared():
    """What the test leaves of a model that tests share is of no use to others."""
    yield
    shared_model.cache_clear()


def words(gen, source) -> list:
    return [hypotheses[0]["tokens"].tolist() for hypotheses in gen.generate(gen.models, sample_of(source))]


@needs_int8
@pytest.mark.parametrize("name", MAKERS)
def test_int8_gives_a_sentence_the_same_words_in_every_batch(name):
    one, gen = MAKERS[name]("int8")
    before = {key: value.clone() for key, value in one.state_dict().items()}
    forwards = [vars(module).get("forward") for module in one.modules()]
    source = source_batch(LENGTHS, 20, seed=3)  # without near ties of these random weights, which rounding may decide
    together = words(gen, source)
    assert [words(gen, source[b : b + 1, :n])[0] for b, n in enumerate(LENGTHS)] == together
    layers = [module for module in gen.models[0].modules() if type(module) in (nn.Linear, PreparedLinear)]
    assert layers and all(type(layer) is PreparedLinear and layer.in_int8 for layer in layers)
    # the user's model is what it was
    assert all(torch.equal(value, before[key]) for key, value in one.state_dict().items())
    assert not any(isinstance(module, PreparedLinear) for module in one.modules())
    assert forwards == [vars(module).get("forward") for module in one.modules()]


SAME_BITS = {
    **{
        name: MAKERS[name]
        for name in ("mask_predict", "confidence", "fertilities", "lengths", "ctc", "dag", "best path")
    },
    "soft copy": of_nat("--source-copy", "soft"),
    "plain layers": of_nat("--source-copy", "uniform", *(f"--no-{flag}" for flag in PAPERS)),
    "wide heads": of_nat(*ODD, "--source-copy", "uniform", *(f"--no-{flag}" for flag in PAPERS)),
}


@needs_int8
@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("name", SAME_BITS)
def test_int8_computes_a_sentence_bit_by_bit_the_same_in_every_batch(name, seed):
    """But for a last bit of the scores: sums over a graph, and over a vocabulary, are in float32."""
    _, gen = SAME_BITS[name]("int8")
    source = source_batch(LENGTHS, 20, seed=seed)
    together = gen.generate(gen.models, sample_of(source))
    for b, n in enumerate(LENGTHS):
        (alone,) = gen.generate(gen.models, sample_of(source[b : b + 1, :n]))
        assert alone[0]["tokens"].tolist() == together[b][0]["tokens"].tolist()
        apart = (alone[0]["positional_scores"] - together[b][0]["positional_scores"]).abs()
        assert apart.numel() == 0 or apart.max() < 2e-6


@needs_packing
@pytest.mark.parametrize("name", ["mask_predict", "lengths", "bang", "beam"])
def test_packed_weights_give_the_same_words(name, monkeypatch, unshared):
    _, gen = MAKERS[name]("int8")
    source = source_batch(LENGTHS, 20)
    wanted = words(gen, source)
    monkeypatch.setattr(packed_form, "SMALL", 0)
    prepare.weights_changed()
    assert words(gen, source) == wanted
    layers = [m for m in gen.models[0].modules() if type(m) is PreparedLinear and m.int8 is not None]
    assert layers and all(type(layer.int8) is PackedWeight for layer in layers)
    gen.give_weights_back()
    assert words(gen, source) == wanted


@needs_int8
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "blockwise"])  # whose heads are no linear layers
def test_no_large_product_of_int8_decoding_is_in_floating_point(name):
    """Only attention's own products are, and those of the heads of lengths and fertilities."""
    _, gen = MAKERS[name]("int8")
    own = {tuple(layer.weight.shape) for layer in gen.models[0].modules() if type(layer) is PreparedLinear}
    source = source_batch(LENGTHS, 20)
    words(gen, source)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.linear.default):
                seen.append(tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor) and a.dim() == 2))
            return func(*args, **(kwargs or {}))

    with Watch():
        words(gen, source)
    assert not [shapes for shapes in seen if shapes[-1] in own or shapes[-1][::-1] in own]


@needs_int8
def test_int8_is_close_to_float32():
    for name in ("mask_predict", "lengths", "blockwise", "bang"):
        source = source_batch(LENGTHS, 20)
        one, gen = MAKERS[name]("float32")
        wanted, found = words(gen, source), words(MAKERS[name]("int8")[1], source)
        same = sum(a == b for old, new in zip(wanted, found) for a, b in zip(old, new))
        assert same >= 0.6 * sum(map(len, wanted)), name  # of random weights, which are sure of little


# -- the weights of now ------------------------------------------------------------------------------------------------


def change_in_place(one):
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)


def change_data(one):
    for parameter in one.parameters():
        parameter.data = parameter.data * (torch.rand_like(parameter) + 0.5)


def step_of_fairseqs_adam(one):
    """By ``parameter.data``, which changes neither a parameter's version nor its place in memory."""
    versions = [parameter._version for parameter in one.parameters()]
    for parameter in one.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = SimpleNamespace(step=Adam(one.parameters(), lr=0.3).step)
    tiny_task("--share-all-embeddings").optimizer_step(optimizer, one, 1)
    assert versions == [parameter._version for parameter in one.parameters()]


def replace(one):
    torch.manual_seed(5)
    for module in one.modules():
        if type(module) is nn.Linear and module is not one.decoder.output_projection:
            module.weight = nn.Parameter(torch.randn_like(module.weight) * 0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("change", [change_in_place, change_data, replace, step_of_fairseqs_adam])
def test_an_update_is_seen(change, dtype):
    one, gen = of_cmlm(dtype)
    source = source_batch(LENGTHS, 20)
    old = words(gen, source)
    one.train()  # as the trainer does between two validations
    torch.manual_seed(4)
    change(one)
    new = words(gen, source)
    fresh, other = of_cmlm(dtype)
    fresh.load_state_dict(one.state_dict())
    assert new == words(other, source) != old
    assert one.training


def test_parameters_are_shared_and_no_memory_of_the_tables_is_copied():
    one, gen = of_cmlm("float32")
    (copied,) = gen.models
    assert {id(p) for p in copied.parameters()} == {id(p) for p in one.parameters()}
    assert copied.decoder.output_projection.weight is one.decoder.embed_tokens.weight
    one.double()
    assert next(copied.parameters()).dtype == torch.float64
    words(gen, source_batch(LENGTHS, 20))


def test_the_size_of_the_weights_is_that_of_the_type_they_are_read_in():
    one, _ = random_model()
    sizes = {}
    for name in ("float32", "bfloat16", *["int8"] * (int8_lacks(torch.device("cpu")) is None)):
        prepared = prepare_for_decoding(one, name)
        prepared.update(getattr(torch, name))
        sizes[name] = prepared.weight_bytes()
    assert sizes["float32"] == sum(4 * parameter.numel() for parameter in one.parameters())
    linear = sum(p.numel() for m in one.modules() if type(m) is nn.Linear for p in m.parameters(recurse=False))
    assert sizes["float32"] - 2 * linear <= sizes["bfloat16"] < sizes["float32"]
    assert sizes.get("int8", 0) < sizes["bfloat16"]


@needs_int8
@pytest.mark.parametrize(
    "arch, flags",
    [
        ("nat", ("--ctc",)),
        ("cmlm", ()),
        (
            "cmlm",
            (
                "--encoder-learned-pos",
                "--decoder-learned-pos",
                "--max-source-positions=512",
                "--max-target-positions=512",
            ),
        ),
        ("bang", ("--criterion=bang_loss", "--max-source-positions=1024")),
    ],
)
def test_int8_takes_three_tenths_of_the_memory_of_float32(arch, flags):
    """Of a model of the sizes that the examples train; a table that is tied to the projection is there once."""
    dims = ("encoder-embed-dim", "decoder-embed-dim", "encoder-ffn-embed-dim", "decoder-ffn-embed-dim")
    sizes = [f"--{name}={128 * (4 if 'ffn' in name else 1)}" for name in dims]
    sizes += ["--encoder-layers=3", "--decoder-layers=3", "--share-all-embeddings", "--max-target-positions=1024"]
    one, _ = random_model(arch, words=6000, flags=(*sizes, *flags))
    prepared = prepare_for_decoding(one, "int8")
    prepared.update(torch.int8)
    assert prepared.weight_bytes() < 0.3 * sum(4 * parameter.numel() for parameter in one.parameters())
    tied = prepared.model.decoder.output_projection.int8
    assert prepared.model.decoder.embed_tokens.table.int8 is prepared.model.encoder.embed_tokens.table.int8 is tied


@needs_int8
def test_learned_positions_are_fairseqs_own_in_float32_and_of_8_bits_in_int8():
    one, _ = random_model()  # cmlm_tiny's are learned
    tokens = source_batch([5, 3], 20)
    table, rows = one.decoder.embed_positions, torch.tensor([[2, 4]])
    exact, rough = (prepare_for_decoding(one, name) for name in ("float32", "int8"))
    exact.update(torch.float32)
    for _ in range(2):
        rough.update(torch.int8)
        step = table.weight.abs().amax() / 127
        for given in ((tokens,), (tokens, {})):  # the second: the last position alone, as fairseq's search asks
            wanted = table(*given)
            assert torch.equal(exact.model.decoder.embed_positions(*given), wanted)
            found = rough.model.decoder.embed_positions(*given)
            assert found.shape == wanted.shape and 0 < (found - wanted).abs().max() <= 0.51 * step
        assert torch.equal(position_rows(table, rows), table.weight[rows])
        assert torch.equal(position_rows(exact.model.decoder.embed_positions, rows), table.weight[rows])
        found = position_rows(rough.model.decoder.embed_positions, rows)
        assert (found - table.weight[rows]).abs().max() <= 0.51 * step
        with torch.no_grad():
            table.weight.mul_(2)


# -- weights that are given back ---------------------------------------------------------------------------------------


def bytes_in_use(one) -> int:
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in one.parameters()}.values())


@needs_int8
@pytest.mark.parametrize("name", MAKERS)
def test_a_generator_alone_with_its_model_gives_the_weights_back(name, unshared):
    source = source_batch([6, 3, 12], 20)
    wanted = words(MAKERS[name]("int8")[1], source)
    one, gen = MAKERS[name]("int8")
    before, shapes = bytes_in_use(one), [parameter.shape for parameter in one.parameters()]
    gen.give_weights_back()
    assert words(gen, source) == wanted and words(gen, source[:1]) == wanted[:1]
    assert bytes_in_use(one) < 0.6 * before  # what drafters read stays
    assert [parameter.shape for parameter in one.parameters()] == shapes
    with pytest.raises(
        ValueError, match="^--decode-dtype float32: the weights were given back when the model was made"
    ):
        again = prepare_for_decoding(one, "float32")
        again.update(torch.float32)
    prepare.weights_changed()
    assert words(gen, source) == wanted


def memory_of_giving_back() -> tuple:
    """Bytes of a model's weights, and resident before they are given back, afterwards, and at most meanwhile."""
    torch.set_num_threads(1)
    dims = ("encoder-embed-dim", "decoder-embed-dim", "encoder-ffn-embed-dim", "decoder-ffn-embed-dim")
    sizes = [f"--{name}={512 * (4 if 'ffn' in name else 1)}" for name in dims]
    one, task = random_model("cmlm", 10000, flags=(*sizes, "--encoder-layers=2", "--decoder-layers=2"))
    gen = mask_predict([one], task.target_dictionary, task.mask_index, decode_dtype="int8")
    restart_peak()
    before = memory("VmRSS")
    gen.give_weights_back()
    return sum(4 * parameter.numel() for parameter in one.parameters()), before, memory("VmRSS"), memory("VmHWM")


@needs_int8
@pytest.mark.skipif(not counts_memory(), reason="this system does not count a process's memory")
def test_memory_that_is_given_back_is_the_systems_again():
    """That of the float32 weights, and what quantising took; the C library would keep most of it. In a new process,
    as others have memory of their own to give back.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        size, before, after, most = process.submit(memory_of_giving_back).result()
    assert after < before - 0.55 * size  # a quarter is in int8 now
    assert most < before + 0.9 * size  # with whole copies it was 1.24; 0.67 was seen


@needs_int8
def test_weights_are_given_back_in_fairseq_generate_only(monkeypatch):
    source = source_batch([6, 3], 20)
    one, task = tiny_model("--share-all-embeddings")
    exact = words(task.build_generator([one], Namespace(decode_dtype="float32")), source)
    gen = task.build_generator([one], Namespace(decode_dtype="int8"))  # as --eval-bleu and fairseq's hub do
    found = words(gen, source)
    assert not any(map(given_back, one.parameters()))
    assert words(task.build_generator([one], Namespace(decode_dtype="float32")), source) == exact
    token = commands.OUTPUT.set(sys.stdout)
    try:
        untouched = task.build_generator([copy.deepcopy(one)], Namespace(decode_dtype="float32"))
        gen = task.build_generator([one], Namespace(decode_dtype="int8"))
    finally:
        commands.OUTPUT.reset(token)
    assert words(gen, source) == found and not any(map(given_back, untouched.models[0].parameters()))
    weight = one.decoder.layers[0].fc1.weight
    assert given_back(weight) and F.linear(torch.ones(64), weight).isnan().all()


# -- fused products ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=needs_int8)])
def test_fused_projections_are_the_layers_own(dtype):
    one, _ = random_model()
    prepared = prepare_for_decoding(one, dtype)
    prepared.update(getattr(torch, dtype))
    x = torch.randn(2, 5, 64)
    for attention, names in (
        (prepared.model.encoder.layers[0].self_attn, ("q_proj", "k_proj", "v_proj")),
        (prepared.model.decoder.layers[1].encoder_attn, ("k_proj", "v_proj")),
    ):
        assert attention.fused.usable()
        with torch.no_grad():
            for fused, name in zip(attention.fused(x), names):
                assert fused.shape == (2, 5, 64)
                torch.testing.assert_close(fused, getattr(attention, name)(x), rtol=0.02, atol=1e-3)
    exact = prepare_for_decoding(one, "float32")
    exact.update(torch.float32)
    assert not exact.model.encoder.layers[0].self_attn.fused.usable()


def products_of_source(decoder, encoded) -> list:
    """The kinds of the products of which a decoder's memory is made.

    Args:
        encoded: the states (S, B, D) of the encoder, before its first layer and after every one.
    """
    seen = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for kind in (FusedLinear, PreparedLinear):
            call = kind.__call__

            def counted(self, x, call=call, kind=kind):
                seen.append(kind)
                return call(self, x)

            patch.setattr(kind, "__call__", counted)
        read = decoder.attended_states({"encoder_out": [encoded[-1]], "encoder_states": encoded})
        batch_first = {id(state): state.transpose(0, 1) for state in read}
        read = [batch_first[id(state)] for state in read]
        attentions = [layer.encoder_attn for layer in decoder.layers]
        memory = Memory.of(attentions, read, None)
    for attention, state, keys, values in zip(attentions, read, memory.keys, memory.values):
        for name, heads in (("k_proj", keys), ("v_proj", values)):
            with torch.no_grad():
                own = split_heads(attention, getattr(attention, name)(state))
            torch.testing.assert_close(heads, own.to(heads.dtype), rtol=0.02, atol=1e-3)
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int8", marks=needs_int8)])
def test_layers_that_read_one_source_have_one_product_of_it(dtype):
    one, _ = random_model()
    prepared = prepare_for_decoding(one, dtype)
    prepared.update(getattr(torch, dtype))
    decoder, encoded = prepared.model.decoder, [torch.randn(5, 2, 64)]
    assert products_of_source(decoder, encoded) == [FusedLinear]
    called = []
    one.decoder.layers[1].encoder_attn.k_proj.register_forward_hook(lambda *_: called.append(1))
    assert FusedLinear not in products_of_source(decoder, encoded) and called


@needs_int8
def test_layers_that_read_other_layers_have_a_product_each():
    one, _ = nat("--layerwise-attention")
    prepared = prepare_for_decoding(one, "int8")
    prepared.update(torch.int8)
    decoder = prepared.model.decoder
    encoded = [torch.randn(5, 2, decoder.embed_dim) for _ in range(len(decoder.layers) + 1)]
    assert products_of_source(decoder, encoded) == [FusedLinear] * len(decoder.layers)


def test_a_prepared_model_is_made_once_and_dies_with_the_original():
    one, _ = random_model()
    first = prepare_for_decoding(one, "bfloat16")
    assert prepare_for_decoding(one, "bfloat16") is first and prepare_for_decoding(one, "float32") is not first
    assert prepare_for_decoding(first.model, "float32") is first
    known = len(prepare.MADE)
    del one, first
    gc.collect()
    assert len(prepare.MADE) < known


def test_a_replaced_module_is_seen_by_the_next_generator():
    one, old = of_cmlm("float32")
    source = source_batch(LENGTHS, 20)
    before = words(old, source)
    layer = nn.Linear(64, one.decoder.layers[0].fc1.out_features)
    nn.init.normal_(layer.weight)
    one.decoder.layers[0].fc1 = layer
    task = tiny_task(words=20)
    decoded = []
    for model in (one, copy.deepcopy(one)):
        gen = mask_predict([model], task.target_dictionary, task.mask_index, max_len_b=30, iterations=3)
        decoded.append(words(gen, source))
    assert decoded[0] == decoded[1] != before


def test_half_weights_are_cast_once():
    _, gen = of_cmlm("bfloat16")
    source = source_batch(LENGTHS, 20)
    words(gen, source)
    weights = {id(p) for p in gen.models[0].parameters() if p.dim() == 2}
    cast = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and id(args[0]) in weights:
                cast.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with Watch():
        words(gen, source)
    assert len(cast) <= 1  # the length head's, which is no linear layer


@needs_int8
def test_two_threads_decode_at_once():
    one, task = random_model(words=20)
    sources = [source_batch(LENGTHS, 20, seed=seed) for seed in range(6)]

    def loop():
        return mask_predict([one], task.target_dictionary, task.mask_index, decode_dtype="int8", max_len_b=20)

    wanted = [words(loop(), source) for source in sources]
    one, task = random_model(words=20)  # the same weights, prepared by whichever thread comes first
    found = {}

    def work(numbers):
        for i in numbers:
            found[i] = words(loop(), sources[i])

    threads = [threading.Thread(target=work, args=(range(start, 6, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == wanted


def test_layers_whose_weight_is_computed_stay_as_they_are():
    one, _ = random_model()
    one.decoder.layers[0].fc1 = nn.utils.weight_norm(one.decoder.layers[0].fc1)
    source = source_batch([3, 5], 20)
    one(source, None, source, source)["words"].loss.backward()  # the weight is now the result of an operation
    copied = prepare_for_decoding(one, "float32").model
    assert type(copied.decoder.layers[0].fc1) is nn.Linear and type(copied.decoder.layers[0].fc2) is PreparedLinear
    with torch.no_grad():
        one.decoder.layers[0].fc1.weight_g.mul_(2)
        x = torch.randn(2, 64)
        assert torch.equal(copied.decoder.layers[0].fc1(x), one.decoder.layers[0].fc1(x))


class Recorder:
    """A user's object, of which a method is a hook."""

    def __init__(self):
        self.types = []

    def hook(self, module, inputs, output):
        self.types.append(type(inputs[0]))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("later", [False, True])
def test_hooks_see_decoding_whenever_they_are_added(later, dtype):
    one, gen = of_cmlm(dtype) if later else (random_model(words=20)[0], None)
    source, recorder = source_batch([3, 5], 20), Recorder()
    if later:
        words(gen, source)
    attention = one.decoder.layers[0].self_attn
    handles = [module.register_forward_hook(recorder.hook) for module in (attention.q_proj, one.decoder.layers[0].fc1)]
    if not later:
        task = tiny_task(words=20)
        gen = mask_predict([one], task.target_dictionary, task.mask_index, decode_dtype=dtype, iterations=3)
    words(gen, source)
    assert len(recorder.types) == 6 and set(recorder.types) == {torch.Tensor}  # three passes
    for handle in handles:
        handle.remove()
    words(gen, source)
    assert len(recorder.types) == 6


def test_a_model_in_half_precision_is_decoded_in_its_own_or_in_one_line_refused():
    for own, other in (("float16", "bfloat16"), ("bfloat16", "float16")):
        one, gen = of_cmlm(other)
        one.to(getattr(torch, own))
        with pytest.raises(ValueError, match=f"^--decode-dtype {other}: the model is in {own} already"):
            words(gen, source_batch([3], 20))
        one, gen = of_cmlm("auto")
        one.to(getattr(torch, own))
        assert len(words(gen, source_batch([3], 20))) == 1


def test_a_model_that_cannot_be_copied_is_named():
    one, _ = random_model()
    one.lock = threading.Lock()
    with pytest.raises(ValueError, match="^a CmlmModel cannot be copied for decoding: cannot pickle"):
        prepare_for_decoding(one, "float32")


# -- refusals and the choice -------------------------------------------------------------------------------------------


def test_int8_is_for_cpus_whose_products_are_exact(monkeypatch):
    one, _ = random_model()
    assert int8_lacks(torch.device("cuda")) == "it is for CPUs, and this is cuda"
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(forms, "seven_bits_are_exact", lambda: False)
    message = (
        "^--decode-dtype int8: this processor has no VNNI instructions, and this PyTorch no products of seven bits for "
        "it; use --decode-dtype float32, bfloat16 or auto$"
    )
    with pytest.raises(ValueError, match=message):
        prepare_for_decoding(one, "int8")
    assert kernels_work()
    monkeypatch.setattr(torch, "_int_mm", lambda *inputs: torch.zeros(3, 3, dtype=torch.int32))
    assert not kernels_work()
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="this PyTorch has no oneDNN with int8"):
        prepare_for_decoding(one, "int8")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="^--decode-dtype int8: it is for CPUs, and this is meta; use --decode-dtype"):
        prepare_for_decoding(one.to("meta"), "int8")  # in the place of a GPU


@needs_int8
@pytest.mark.parametrize(
    "flags, message",
    [
        (("--adaptive-softmax-cutoff", "5,10"), "^--decode-dtype int8: models of --adaptive-softmax-cutoff are"),
        (("--quant-noise-pq", "0.1"), "^--decode-dtype int8: this model was trained with --quant-noise-pq"),
    ],
)
def test_other_models_are_refused(flags, message):
    one, task = random_model("transformer_tiny", flags=("--criterion", "cross_entropy", *flags))
    with pytest.raises(ValueError, match=message):
        prepare_for_decoding(one, "int8")


@needs_int8
def test_a_model_of_fairseqs_scalar_quantisation_is_refused():
    one, _ = random_model("cmlm")  # fairseq cannot quantise learned positions
    quantize_model_(one, p=0.1, bits=8, update_step=1000)  # what the task does for --quant-noise-scalar
    with pytest.raises(ValueError, match="trained with --quant-noise-pq or --quant-noise-scalar, another quantisation"):
        prepare_for_decoding(one, "int8")


@pytest.mark.parametrize(
    "seconds, chosen",
    [
        ({"float32": 1.0, "float16": 0.7, "bfloat16": 0.5}, "bfloat16"),
        ({"float32": 1.0, "float16": 0.7, "bfloat16": 9.0}, "float16"),
        ({"float32": 0.5, "float16": 0.7, "bfloat16": 1.0}, "float32"),
        ({"float32": 0.1, "bfloat16": 9.0}, "float32"),
    ],
)
def test_auto_takes_the_faster_one_and_says_so(seconds, chosen, monkeypatch, caplog):
    asked = []

    def product_seconds(shape, types):
        asked.append(types)
        return [seconds[str(dtype).replace("torch.", "")] for dtype in types]

    monkeypatch.setattr(choice, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(choice, "fbgemm_has_float16", lambda: "float16" in seconds)
    monkeypatch.setattr(choice, "product_seconds", product_seconds)
    _, gen = of_cmlm("auto")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            words(gen, source_batch(LENGTHS, 20))
    lines = [record.getMessage() for record in caplog.records if "auto" in record.getMessage()]
    assert lines == [f"--decode-dtype auto: {chosen}, the faster one on this cpu"]
    # one small product shows a CPU without bfloat16
    assert asked[0][-1] == torch.bfloat16 and all(
        (torch.bfloat16 in types) == (seconds["bfloat16"] < 4) for types in asked[1:]
    )


def test_auto_really_times_the_products():
    one, _ = random_model()
    assert choice.faster_decode_dtype(torch.device("cpu"), one, 30) in choice.candidates(one)
    assert min(choice.product_seconds((8, 64, 64), choice.candidates(one))) > 0


def test_int8_in_the_validation_of_a_training_on_a_gpu_is_refused_at_its_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="^--decode-dtype int8: it is for CPUs, and this is cuda; use"):
        tiny_model("--eval-bleu", "--share-all-embeddings", "--decode-dtype", "int8")
