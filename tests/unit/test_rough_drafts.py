"""Drafts by products in int8: the output is that of greedy search, whatever they are, and they follow the weights."""

import pytest
import torch
from blockwise_twin import blockwise, greedy
from test_blockwise_generator import SOURCE, decode, texts, with_heads

from nar_plugins.modules.fast import rough
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16
from nar_plugins.modules.fast.prepare import weights_changed

CPU = torch.device("cpu")
HEADS = [("--block-head", kind, "--block-size", "5") for kind in ("full", "diag", "sequential")]
needs_int8 = pytest.mark.skipif(int8_lacks(CPU) is not None, reason=str(int8_lacks(CPU)))


@pytest.fixture
def all_in_int8(monkeypatch):
    """Weights of any size are large, and for a kernel."""
    monkeypatch.setattr(rough, "LARGE", 0)
    monkeypatch.setattr(rough, "for_fbgemm", lambda inputs, looked_up: True)


@needs_int8
@pytest.mark.parametrize("outputs", [rough.LARGE // 512, rough.PACKED // 512], ids=["in rows", "packed"])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_large_product_is_nearly_the_same(outputs, rows):
    torch.manual_seed(1)
    weight, bias, x = torch.randn(outputs, 512), torch.randn(outputs), torch.randn(rows, 512)
    exact, near = (make(weight)(x, bias) for make in (rough.exact_product, rough.rough_product))
    assert exact.allclose(torch.nn.functional.linear(x, weight, bias), atol=1e-4)
    # every input is rounded by at most half of a step of its row, of seven bits or eight
    bound = 512 * (x.aminmax().max - x.aminmax().min) / 127.5 * weight.abs().max() + 1e-3
    assert not exact.equal(near) and (exact - near).abs().max() < bound / 8


def test_a_product_without_its_kernel_is_in_float16(monkeypatch):
    """Where products are added in 16 bits, FBGEMM has the fast one of int8, for multiples of 512."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    large = torch.empty(rough.LARGE // 128, 128)
    assert not rough.faster_in_int8(large) and rough.faster_in_int8(large.view(-1, 512))
    assert rough.faster_in_half(large) == fbgemm_has_float16()
    if fbgemm_has_float16():
        weight, x = torch.randn_like(large), torch.randn(3, 128)
        near, exact = rough.rough_product(weight)(x, torch.ones(len(weight))), x @ weight.t() + 1
        assert 1e-5 < (near - exact).norm() / exact.norm() < 1e-3
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert rough.faster_in_int8(large) and not rough.faster_in_half(large)


def test_a_small_product_is_the_same():
    weight, bias, x = torch.randn(20, 16), torch.randn(20), torch.randn(3, 16)
    assert rough.rough_product(weight)(x, bias).equal(rough.exact_product(weight)(x, bias))


@needs_int8
@pytest.mark.parametrize("flags", HEADS, ids=lambda flags: flags[1])
@pytest.mark.parametrize("words", [None, 12])
def test_the_output_stays(flags, words, all_in_int8):
    one, task = with_heads(*flags)
    gen = blockwise([one], task, verify_block=4, max_len_b=16, draft_vocab_size=words)
    found = decode(gen)
    assert texts(found) == texts(greedy([one], task, SOURCE, max_len_b=16))
    assert gen.drafter.rough and gen.drafter.projects_roughly()


@needs_int8
def test_drafts_in_int8_are_as_often_right(all_in_int8):
    one, task = with_heads("--block-head", "sequential", "--block-size", "5")
    near, exact = (blockwise([one], task, verify_block=4, max_len_b=16) for _ in range(2))
    exact.drafter.rough = False
    calls = [sum(hypo["steps"] for hypo in decode(gen)) for gen in (near, exact)]
    assert abs(calls[0] - calls[1]) <= 0.1 * calls[1]
    assert near.drafter.cost_per_row(3) < exact.drafter.cost_per_row(3)
    assert near.drafter.fixed_cost(3) < exact.drafter.fixed_cost(3)


@pytest.mark.parametrize("settings", [{"accept": "top"}, {"min_block": 2}], ids=str)
def test_what_changes_the_output_is_drafted_in_float32(settings):
    one, task = with_heads()
    assert not blockwise([one], task, **settings).drafter.rough


@needs_int8
def test_bfloat16_and_int8_keep_their_own_projection(all_in_int8):
    one, task = with_heads()
    for dtype in ("bfloat16", "int8"):
        gen = blockwise([one], task, verify_block=4, max_len_b=16, decode_dtype=dtype)
        decode(gen)
        with gen.decoding(SOURCE):
            assert not gen.drafter.projects_roughly(), dtype


@needs_int8
@torch.no_grad()
def test_drafts_follow_the_weights(all_in_int8):
    """A training changes them by ``.data``, which PyTorch does not count."""
    one, task = with_heads("--block-head", "sequential", "--block-size", "5")
    gen = blockwise([one], task, verify_block=4, max_len_b=16)
    first = [hypo["accepted"] for hypo in decode(gen)]
    products = gen.drafter.head_products
    assert [hypo["accepted"] for hypo in decode(gen)] == first and gen.drafter.head_products is products
    torch.manual_seed(4)
    before = one.decoder.proposal_heads.weight.data.clone()
    one.decoder.proposal_heads.weight.data.normal_(std=3.0)
    weights_changed()
    assert [hypo["accepted"] for hypo in decode(gen)] != first
    one.decoder.proposal_heads.weight.data.copy_(before)
    weights_changed()
    assert [hypo["accepted"] for hypo in decode(gen)] == first
    one.decoder.proposal_heads.weight.normal_(std=3.0)  # in place: counted
    assert [hypo["accepted"] for hypo in decode(gen)] != first
