"""--train-dtype auto: what is timed, and how it is weighed."""

import pytest
import tiny
import torch
import torch.nn as nn

from nar_plugins.modules import precision
from nar_plugins.modules.fast import choice

CPU = torch.device("cpu")


def test_the_products_are_those_of_the_models_own_layers_with_the_vocabularys():
    model, _ = tiny.model("--share-all-embeddings", words=40)
    found = precision.layer_products(model, rows=100)
    assert {shape[0] for shape in found} == {100}
    assert {shape[1:] for shape in found} == {(64, 64), (64, 128), (128, 64), (64, 45)}  # 40 words, five symbols
    assert found[100, 64, 45] == 1 and found[100, 64, 128] == found[100, 128, 64] == 4  # two layers a side
    assert found[100, 64, 64] >= 6 * 4  # two or four projections in each of six attentions


def test_of_a_large_vocabulary_a_part_is_timed_and_of_a_large_model_fewer_rows():
    layers = nn.Sequential(nn.Linear(512, 40000, bias=False), nn.Linear(1024, 4096), nn.Linear(4096, 1024))
    found = precision.layer_products(layers, rows=3000)
    (rows,) = {shape[0] for shape in found}
    assert 32 <= rows < 256
    assert found == {(rows, 512, 4096): 40000 / 4096, (rows, 1024, 4096): 1, (rows, 4096, 1024): 1}
    assert precision.layer_products(nn.Sequential(nn.Linear(8, 8)), rows=3000) == {(256, 8, 8): 1}
    assert precision.layer_products(nn.Sequential(nn.Linear(8, 8)), rows=5) == {(5, 8, 8): 1}


def timed(monkeypatch, seconds: dict, model) -> tuple:
    """The choice where products take so long by (dtype, inputs, outputs), and which were timed."""
    asked = []

    def product_times(dtype, rows=256, inputs=256, outputs=256, tries=9):
        asked.append((dtype, inputs, outputs))
        return [seconds[dtype, inputs, outputs]] * tries

    monkeypatch.setattr(precision, "product_times", product_times)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    return precision.faster_dtype(CPU, model, 100), asked


def decoding_seconds(monkeypatch, seconds: dict) -> list:
    """Let decoding's products take so long by type; the list of the types that are timed."""
    timed = []
    monkeypatch.setattr(
        choice, "product_seconds", lambda shape, types: timed.extend(types) or [seconds[dtype] for dtype in types]
    )
    return timed


FLOAT, HALF = torch.float32, torch.bfloat16
SMALL_ONES = {(FLOAT, 256, 256): 1.0, (HALF, 256, 256): 2.0}


@pytest.mark.parametrize("layers, chosen", [(1, HALF), (6, FLOAT)])
def test_the_sum_over_the_layers_decides(monkeypatch, layers, chosen):
    """A vocabulary that bfloat16 wins by 5, and layers that it loses by 1 each: how many there are decides, not one
    shape.
    """
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)), nn.Linear(8, 50))
    seconds = {**SMALL_ONES, (FLOAT, 8, 8): 1.0, (HALF, 8, 8): 2.0, (FLOAT, 8, 50): 10.0, (HALF, 8, 50): 5.0}
    assert timed(monkeypatch, seconds, model)[0] == chosen


@pytest.mark.parametrize("seconds, chosen", [(0.97, FLOAT), (0.9, HALF)])
def test_training_rounds_only_for_a_gain(monkeypatch, seconds, chosen):
    times = {**SMALL_ONES, (FLOAT, 8, 8): 1.0, (HALF, 8, 8): seconds}
    assert timed(monkeypatch, times, nn.Linear(8, 8))[0] == chosen


def test_without_onednns_bfloat16_nothing_is_timed(monkeypatch):
    """Where other processes hold up float32's threads, PyTorch's own loop for bfloat16 can seem to be faster."""
    monkeypatch.setattr(precision, "product_times", lambda *shape, **more: pytest.fail("timed"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert precision.faster_dtype(CPU, nn.Linear(8, 8), 4) == FLOAT
    timed = decoding_seconds(monkeypatch, {FLOAT: 1.0, torch.float16: 1.0})
    assert choice.faster_decode_dtype(CPU, nn.Linear(8, 8), 4) == FLOAT and HALF not in timed


@pytest.mark.parametrize("seconds, chosen", [(0.97, FLOAT), (0.9, torch.float16)])
def test_decoding_rounds_weights_only_for_a_gain(monkeypatch, seconds, chosen):
    monkeypatch.setattr(choice, "candidates", lambda model: [FLOAT, torch.float16])
    decoding_seconds(monkeypatch, {FLOAT: 1.0, torch.float16: seconds})
    assert choice.faster_decode_dtype(CPU, nn.Linear(8, 8), 4) == chosen


def test_where_bfloat16_is_far_slower_no_large_product_is_waited_for(monkeypatch):
    chosen, asked = timed(monkeypatch, {(FLOAT, 256, 256): 1.0, (HALF, 256, 256): 12.0}, nn.Linear(1024, 4096))
    assert chosen == FLOAT and asked == [(FLOAT, 256, 256), (HALF, 256, 256)]


def test_the_task_times_the_model_that_it_trains(monkeypatch):
    model, task = tiny.model("--train-dtype", "auto")
    seen = []
    monkeypatch.setattr("nar_plugins.tasks.base.faster_dtype", lambda *args: seen.append(args) or HALF)
    for _ in range(2):
        assert task.train_dtype(CPU, model, torch.zeros(3, 7)) == HALF
    assert seen == [(CPU, model, 21)]


def test_both_types_are_timed_forward_and_back():
    for dtype in (FLOAT, HALF):
        assert len(list(precision.product_times(dtype, 4, 8, 16, tries=2))) == 2
    assert precision.faster_dtype(CPU, nn.Linear(8, 8), 4) in (FLOAT, HALF)
