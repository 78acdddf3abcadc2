"""Exported models, run by ONNX Runtime and NumPy, against the generators in PyTorch with the same weights."""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, source_batch
from tiny import dictionary, model

from nar_plugins.export import onnx, runtime
from nar_plugins.generators.canvas.lengths import candidate_lengths
from nar_plugins.generators.canvas.schedule import remask_count
from nar_plugins.generators.options import generation_options
from nar_plugins.generators.registry import CONFIGS, GENERATORS

MISSING = [name for name in onnx.PACKAGES if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed")

WORDS, PAD, EOS, MASK = 20, 1, 2, 24
SMALL = ("--share-all-embeddings", "--encoder-layers", "1", "--max-source-positions", "30", "--max-target-positions", "40")
ONE, TWO = ("--decoder-layers", "1"), ("--decoder-layers", "2", "--no-layerwise-attention")
KINDS = {  # architecture, flags, options that the graph holds
    "ctc": ("nat_tiny", (*ONE, "--ctc", "--upsample", "3"), {}),
    "fertilities": ("nat_tiny", (*ONE, "--encoder-normalize-before", "--decoder-normalize-before"), {}),
    "lengths": ("nat_tiny", (*TWO, "--source-copy", "soft"), {"length_beam": 3}),
    "cmlm": ("cmlm_tiny", TWO[:2], {}),
}
# without padding and with it; sources of one token, an empty one, and the longest
BATCHES = [[7], [2], [1], [6, 6, 6], [5, 9, 2, 7, 1], [30, 2, 14], [2, 2, 1, 2]]


def made(kind: str):
    """A model of random weights that is sure of what it says, and its task."""
    arch, flags, _ = KINDS[kind]
    one, task = model(*SMALL, *flags, arch=arch)
    with torch.no_grad():
        one.decoder.output_projection.weight.mul_(8)
        if getattr(one.encoder, "fertility_head", None) is not None:
            one.encoder.fertility_head.weight.mul_(6)
            one.encoder.fertility_head.bias.copy_(torch.arange(50).eq(1) * 4.0 - torch.arange(50) * 0.7)
    return one.eval(), task


@functools.lru_cache(maxsize=None)
def exported(kind: str, int8: bool = False):
    """A model, its task and the folder of its export."""
    one, task = made(kind)
    folder = Path(tempfile.mkdtemp())
    for side in ("src", "tgt"):
        dictionary(WORDS).save(str(folder / f"dict.{side}.txt"))
    task.cfg.data, task.cfg.source_lang, task.cfg.target_lang = str(folder), "src", "tgt"
    out = folder / "out"
    out.mkdir()
    return one, task, out, onnx.write_model(one, task, out, KINDS[kind][2], int8)


@pytest.fixture(scope="module", autouse=True)
def folders():
    yield
    exported.cache_clear()


def hypotheses(one, task, source, **settings):
    """What the generator says."""
    name = one.generators[0]
    config = {f.name: f.default for f in fields(CONFIGS[name]) if not f.name.startswith("_")}
    ours = {key: settings.pop(key) for key in list(settings) if key in config}
    options = generation_options(SimpleNamespace(**settings))
    config = SimpleNamespace(**{**config, **ours})
    generator = GENERATORS[name]([one], task.target_dictionary, config, options, MASK, None)
    return generator.generate([one], {"net_input": {"src_tokens": source}})


def check_same(ours, theirs, atol=1e-4):
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs):
        assert [h["tokens"] for h in own] == [h["tokens"].tolist() for h in their]
        for a, b in zip(own, their):
            assert a["steps"] == b["steps"] and a["score"] == pytest.approx(float(b["score"]), abs=atol)
            np.testing.assert_allclose(a["positional_scores"], b["positional_scores"].numpy(), atol=atol)


@installed
@pytest.mark.parametrize(
    "kind, run, settings",
    [
        ("ctc", {}, {}),
        ("ctc", {"unnormalized": True}, {"unnormalized": True}),
        ("fertilities", {}, {}),
        ("fertilities", {"max_len_a": 0.5, "max_len_b": 2}, {"max_len_a": 0.5, "max_len_b": 2}),
        ("lengths", {"lenpen": 2.0}, {"length_beam": 3, "lenpen": 2.0}),
        ("lengths", {"max_len_b": 4}, {"length_beam": 3, "max_len_b": 4}),
        ("cmlm", {}, {}),
        ("cmlm", {"iterations": 1, "length_beam": 1}, {"iterations": 1, "length_beam": 1}),
        ("cmlm", {"iterations": 4, "schedule": "cosine"}, {"iterations": 4, "schedule": "cosine"}),
        (
            "cmlm",
            {"schedule": "confidence", "confidence_threshold": 0.3},
            {"schedule": "confidence", "confidence_threshold": 0.3},
        ),
    ],
)
def test_tokens_and_scores_are_pytorchs_in_every_batch(kind, run, settings):
    one, task, folder, _ = exported(kind)
    translator = runtime.OnnxTranslator(folder, 1, **run)
    texts = set()
    for seed, lengths in enumerate(BATCHES):
        source = source_batch(lengths, WORDS, seed=seed)
        theirs = hypotheses(one, task, source, **settings)
        check_same(translator.generate({"net_input": {"src_tokens": source}}), theirs)
        texts |= {tuple(hypos[0]["tokens"].tolist()) for hypos in theirs}
    assert len(texts) > 8
