"""CTranslate2 with the weights of a fairseq model: the same words as fairseq's greedy search."""

import copy
import importlib.util
import sys

import pytest
import torch
from blockwise_twin import greedy, random_model
from conftest import source_batch
from tiny import model

from nar_plugins.measure.ctranslate import CTranslate2, lacks


def test_its_absence_is_named(monkeypatch):
    one, task = random_model()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ValueError, match="^CTranslate2 is not installed: pip install 'nar-plugins\\[ct2\\]'$"):
        CTranslate2(one, task.source_dictionary, task.target_dictionary, "float32", 1)


installed = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")


@installed
def test_nan_is_named():
    """As by fairseq's search; CTranslate2 itself outputs anything."""
    one, task = random_model()
    with torch.no_grad():
        one.decoder.layers[0].fc1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="^the model's weights are NaN or infinite"):
        CTranslate2(one, task.source_dictionary, task.target_dictionary, "float32", 1)


@installed
@pytest.mark.parametrize(
    "flags",
    [
        ("--share-all-embeddings",),
        ("--encoder-normalize-before", "--decoder-normalize-before", "--activation-fn", "gelu"),
        ("--encoder-layers", "4", "--decoder-layers", "1", "--decoder-learned-pos", "--encoder-learned-pos"),
        ("--decoder-normalize-before", "--no-decoder-final-norm", "--encoder-attention-heads", "1"),
        ("--layernorm-embedding", "--no-scale-embedding"),
    ],
)
def test_the_words_are_those_of_fairseq(flags):
    one, task = random_model(*flags)
    source = source_batch([5, 9, 3, 12, 7], 20)
    wanted = [h["tokens"].tolist()[:-1] for h in greedy([one], task, source, max_len_b=15)]
    assert len(set(map(tuple, wanted))) > 1
    source[0, 1], source[1, 3] = 2, 1  # </s> and padding as words
    wanted = [h["tokens"].tolist()[:-1] for h in greedy([one], task, source, max_len_b=15)]
    system = CTranslate2(one, task.source_dictionary, task.target_dictionary, "float32", 1)
    options = dict(max_decoding_length=15, min_decoding_length=1)
    assert system.translate(source, **options) == wanted


@pytest.mark.parametrize(
    "option, value, what",
    [
        ("adaptive_softmax_cutoff", [5, 10], "--adaptive-softmax-cutoff"),
        ("no_cross_attention", True, "--no-cross-attention"),
        ("no_token_positional_embeddings", True, "--no-token-positional-embeddings"),
        ("scale_heads", True, "--scale-heads"),
        ("quant_noise.pq", 0.1, "--quant-noise-pq or --quant-noise-scalar"),
        ("decoder.xformers_att_config", "{}", "--encoder-xformers-att-config or --decoder-xformers-att-config"),
        ("activation_fn", "tanh", "--activation-fn tanh"),
    ],
)
def test_what_it_lacks_is_named(option, value, what):
    one, _ = random_model()
    assert lacks(one) is None
    changed = copy.copy(one)
    changed.cfg = part = copy.deepcopy(one.cfg)
    *parts, name = option.split(".")
    for each in parts:
        part = getattr(part, each)
    setattr(part, name, value)
    assert lacks(changed) == f"a transformer with {what}"


def test_other_models_are_named():
    one, _ = model("--decoder-output-dim", "16", arch="transformer_tiny", criterion="cross_entropy")
    assert lacks(one) == "a transformer with --decoder-output-dim"
    one, _ = model(arch="blockwise_tiny", criterion="blockwise_loss")
    assert lacks(one) == "a BlockwiseModel: it decodes fairseq's transformer"
