"""A model whose output is NaN: every generator ends with one line that says so."""

import copy
from argparse import Namespace

import pytest
import torch
from blockwise_twin import sample_of
from conftest import source_batch
from tiny import model

from nar_plugins.generators import registry
from nar_plugins.generators.options import generation_options

SOURCE = source_batch([5, 9, 1, 3], 20)
NAT = ("nat_tiny", "--source-copy")
CASES = {
    "mask_predict": ("cmlm_tiny",),
    "mask_predict confidence": ("cmlm_tiny",),
    "one_pass uniform": (*NAT, "uniform"),
    "one_pass fertile": ("nat_tiny",),
    "one_pass average": ("nat_tiny",),
    "ctc": ("nat_tiny", "--ctc"),
    "ctc beam": ("nat_tiny", "--ctc"),
    "noisy_parallel": ("nat_tiny",),
    "dag": ("dag_tiny",),
    "dag greedy": ("dag_tiny",),
    "dag viterbi": ("dag_tiny",),
    "dag joint": ("dag_tiny",),
    "blockwise": ("blockwise_tiny",),
    "jacobi": ("transformer_tiny",),
    "nar": ("bang_tiny",),
    "adaptive": ("bang_tiny",),
    "block": ("bang_tiny",),
    "prefix": ("bang_tiny",),
    "cascade": ("bang_tiny",),
    "verify": ("bang_tiny",),
}
FLAGS = {
    "mask_predict confidence": dict(schedule="confidence"),
    "one_pass average": dict(fertility="average"),
    "ctc beam": dict(ctc_beam=3),
    "dag greedy": dict(dag_decode="greedy"),
    "dag viterbi": dict(dag_decode="viterbi"),
    "dag joint": dict(dag_decode="joint-viterbi"),
    "blockwise": dict(generator="blockwise"),
    "jacobi": dict(generator="blockwise"),
    **{name: dict(bang_policy=name) for name in ("nar", "adaptive", "block", "prefix", "cascade", "verify")},
}


def built(name: str, rescorer=None):
    arch, *flags = CASES[name]
    one, task = model(
        *flags,
        arch=arch,
        criterion="cross_entropy"
        if arch in ("transformer_tiny", "bang_tiny")
        else "blockwise_loss"
        if arch == "blockwise_tiny"
        else "nar_loss",
    )
    given = Namespace(beam=1, **{} if getattr(one, "predicts", "") is None else {"max_len_b": 9}, **FLAGS.get(name, {}))
    if name == "noisy_parallel":
        config = task.generator_config(given)
        options = generation_options(given)
        other = model(arch="transformer_tiny", criterion="cross_entropy")[0]
        return one, registry.GENERATORS[name]([one], task.target_dictionary, config, options, task.mask_index, other)
    return one, task.build_generator([one], given)


PARTS = {
    "words": ("decoder.output_projection",),
    "canvas": ("encoder.length_head", "encoder.fertility_head"),
    "all": ("",),
}


def spoil(one, where: str) -> bool:
    """NaN in a part of the model: in the words only, in the head that decides the canvas, everywhere; whether there is
    one.
    """
    weights = [weight for name, weight in one.named_parameters() if name.startswith(PARTS[where])]
    with torch.no_grad():
        for weight in weights:
            weight.fill_(float("nan"))
    return bool(weights)


@pytest.mark.parametrize("name", CASES)
def test_nan_is_named(name):
    one, gen = built(name)
    gen.generate([one], sample_of(SOURCE))  # as long as it is sound, it decodes
    sound = copy.deepcopy(one.state_dict())
    for where in PARTS:
        if not spoil(one, where):
            continue
        with pytest.raises(ValueError) as error:
            gen.generate([one], sample_of(SOURCE))
        assert str(error.value).startswith("the model's output is NaN") and "--decode-dtype float32" in str(error.value)
        assert "\n" not in str(error.value)
        one.load_state_dict(sound)


@pytest.mark.parametrize("name", ["jacobi", "nar", "adaptive"])
def test_nan_in_one_sentence_alone_is_named(name):
    """An overflow in one source only: its word's embedding."""
    one, gen = built(name)
    source = SOURCE.clone()
    source[source.eq(8)] = 9
    source[1, 2] = 8
    with torch.no_grad():
        one.encoder.embed_tokens.weight[8] = float("nan")
    with pytest.raises(ValueError, match="the model's output is NaN"):
        gen.generate([one], sample_of(source))


def test_a_rescorer_is_named_as_such():
    one, gen = built("noisy_parallel")
    spoil(gen.rescorer.model, "all")
    with pytest.raises(ValueError, match="^the rescorer's output is NaN"):
        gen.generate([one], sample_of(SOURCE))
