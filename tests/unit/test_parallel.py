"""What the parallel loops share: the bounds of a length, ensembles, and lists of alternatives that read differently."""

import copy
import functools
from functools import lru_cache

import pytest
import torch
from conftest import source_batch
from test_one_pass import EOS, PAD, WORDS, ar, decode, generator
from test_one_pass import nat as fresh_nat
from tiny import model

from nar_plugins.generators.registry import resolve

UNIFORM = ("--source-copy", "uniform")
SOURCE = source_batch([5, 9, 2, 7, 1], WORDS)  # the last one is empty


nat = lru_cache(maxsize=None)(fresh_nat)


@lru_cache(maxsize=None)
def cmlm(*flags, seed=1, scale=8.0, arch="cmlm_tiny"):
    m, task = model("--share-all-embeddings", *flags, arch=arch, seed=seed)
    with torch.no_grad():
        m.decoder.output_projection.weight.mul_(scale)
    return m.eval(), task


def made(kind: str, *flags, **settings):
    """A generator with a length head, of one of the two kinds of models, and its model's task."""
    m, task = cmlm(*flags) if kind == "mask_predict" else nat(*UNIFORM, *flags)
    passes = {"iterations": 2} if kind == "mask_predict" else {}
    return generator(kind, [m], task, **passes, **settings)


# -- how long a translation must be
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--decoder-learned-pos",)])
@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("kind", ["mask_predict", "one_pass"])
def test_more_tokens_than_positions_are_refused_and_as_many_are_given(kind, gold, flags):
    few = ("--max-target-positions", "12", *flags)
    beam = {"length_beam": 3, "gold_length": gold}
    with pytest.raises(ValueError, match=r"^--min-len 12 is above the 11 tokens that the model's positions allow$"):
        decode(made(kind, *few, min_len=12, **beam), SOURCE, SOURCE)
    out = decode(made(kind, *few, min_len=11, **beam), SOURCE, SOURCE)
    assert [{len(h["tokens"]) for h in hypos} for hypos in out] == [{12}] * 4 + [{1}]


@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("kind", ["mask_predict", "one_pass"])
def test_more_tokens_than_the_greatest_length_are_refused(kind, gold):
    with pytest.raises(ValueError, match=r"^--min-len 10 is above the limit of 5 tokens: see --max-len-a and -b$"):
        decode(made(kind, min_len=10, max_len_b=5, gold_length=gold), SOURCE, SOURCE)
    bounds = {
        "max_len_a": 1,
        "max_len_b": 1,
        "gold_length": gold,
        "length_beam": 2,
    }  # of two tokens, </s> counted: three
    with pytest.raises(ValueError, match="--min-len 4 is above the limit of 3 tokens"):
        decode(made(kind, min_len=4, **bounds), SOURCE, SOURCE)
    out = decode(
        made(kind, min_len=4, **bounds), SOURCE[[0, 1, 3, 4]], SOURCE[[0, 1, 3, 4]]
    )  # the empty one has no bound
    assert all(len(h["tokens"]) >= 5 for hypos in out[:3] for h in hypos) and len(out[3][0]["tokens"]) == 1
    assert all(
        len(h["tokens"]) >= 4 for hypos in decode(made(kind, min_len=3, **bounds), SOURCE, SOURCE)[:4] for h in hypos
    )


@pytest.mark.parametrize("strategy", ["viterbi", "joint-viterbi"])
def test_more_tokens_than_vertices_are_refused_and_as_many_are_given(strategy):
    m, task = nat("--upsample", "3", arch="dag_tiny")
    gen = functools.partial(generator, "dag", [m], task, dag_decode=strategy, length_beam=3)
    out = decode(gen(min_len=4), SOURCE)  # of a source of two tokens six vertices, of which five emit tokens
    assert len(out[2]) == 1 and len(out[2][0]["tokens"]) == 5 and len(out[4][0]["tokens"]) == 1
    assert all(len(h["tokens"]) >= 5 for hypos in out[:4] for h in hypos)
    with pytest.raises(
        ValueError, match=r"^--min-len 5 is above the limit of 4 tokens: so many vertices has the graph"
    ):
        decode(gen(min_len=5), SOURCE)
    with pytest.raises(ValueError, match=r"^--min-len 10 is above the limit of 5 tokens: see --max-len-a and -b$"):
        decode(gen(min_len=10, max_len_b=5), SOURCE)
    with pytest.raises(ValueError, match=r"^--min-len 3000 is above the 1023 tokens that the model's positions allow$"):
        decode(gen(min_len=3000), SOURCE)


# -- ensembles
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, one", [("mask_predict", cmlm), ("one_pass", lambda *flags: nat(*UNIFORM, *flags))])
def test_models_that_predict_other_lengths_are_refused(kind, one):
    (m, task), (other, _) = one(), one("--max-target-positions", "100")
    with pytest.raises(
        ValueError, match="^an ensemble needs models of the same --max-target-positions: .* 100 and 1024$"
    ):
        generator(kind, [m, other], task)


@torch.no_grad()
@pytest.mark.parametrize(
    "flags", [("--length-head", "token"), ("--encoder-embed-dim", "32", "--decoder-embed-dim", "32")]
)
@pytest.mark.parametrize("kind, one", [("mask_predict", cmlm), ("one_pass", lambda *flags: nat(*UNIFORM, *flags))])
def test_models_that_differ_in_what_does_not_matter_are_an_ensemble(kind, one, flags):
    (m, task), (other, _) = one("--length-head", "pooled"), one(*flags)
    gen = generator(kind, [m, other], task, length_beam=4)
    out = decode(gen, SOURCE)
    encoded = [one.encode(SOURCE, SOURCE.ne(PAD).sum(1)) for one in (m, other)]
    mean = sum(one.length_lprobs(out).exp() for one, out in zip((m, other), encoded)) / 2
    for hypos, lprobs in zip(out[:4], mean[:, :201].log()):
        wanted = {max(2, int(n)) for n in lprobs.topk(4).indices}
        assert {len(h["tokens"]) for h in hypos} <= wanted and hypos


def test_fertilities_take_the_fewest_positions_and_other_kinds_are_refused():
    (m, task), (few, _) = nat(), nat("--max-target-positions", "6")
    assert all(len(h["tokens"]) <= 6 for hypos in decode(generator("one_pass", [m, few], task), SOURCE) for h in hypos)
    graphs = [nat(arch="dag_tiny")[0], nat("--max-target-positions", "80", arch="dag_tiny")[0]]
    assert len(decode(generator("dag", graphs, task, dag_decode="joint-viterbi"), SOURCE)) == 5
    with pytest.raises(ValueError, match="cannot decode a NatModel"):
        resolve("auto", [cmlm()[0], nat()[0]])
    with pytest.raises(ValueError, match="cannot decode a TransformerModel"):
        resolve("auto", [nat()[0], ar(task)])


# -- alternatives
# ----------------------------------------------------------------------------------------------------------


def fond_of_the_end(m, bonus: float):
    """A copy of the model with a greater probability of ``</s>``, anywhere."""
    m = copy.deepcopy(m)
    m.decoder.output_projection.register_forward_hook(
        lambda module, inputs, y: y + bonus * torch.arange(y.size(-1)).eq(EOS)
    )
    return m


def texts(hypos) -> list:
    """What a reader sees of every hypothesis."""
    return [tuple(t for t in h["tokens"].tolist() if t != EOS) for h in hypos]


@lru_cache(maxsize=None)
def teacher_of(task):
    return ar(task)


@pytest.mark.parametrize("dedup", ["none", "token"])
@pytest.mark.parametrize(
    "kind, flags, bonus, settings",
    [
        ("mask_predict", (), 6.0, {"length_beam": 8, "iterations": 3}),
        ("one_pass", UNIFORM, 9.0, {"length_beam": 8}),
        ("one_pass", ("--ctc",), 3.0, {"ctc_beam": 8}),
        ("noisy_parallel", (), 8.0, {"fertility_samples": 20}),
        ("dag", (), 3.0, {"length_beam": 8, "dag_decode": "joint-viterbi"}),
        ("dag", (), 3.0, {"length_beam": 8, "dag_decode": "viterbi", "rescored": True}),
        ("mask_predict", (), 6.0, {"length_beam": 8, "iterations": 3, "rescored": True}),
    ],
)
def test_a_list_says_every_text_once_and_its_scores_are_what_they_were(
    kind, flags, bonus, settings, dedup, monkeypatch
):
    arch = {"dag": "dag_tiny"}.get(kind, "nat_tiny")
    m, task = cmlm(*flags) if kind == "mask_predict" else nat(*flags, scale=2.0, arch=arch)
    settings = {**settings}
    teacher = teacher_of(task) if kind == "noisy_parallel" or settings.pop("rescored", False) else None
    gen = generator(kind, [fond_of_the_end(m, bonus)], task, teacher, dedup=dedup, **settings)
    out = decode(gen, SOURCE)

    def all_of_them(found, rows):
        return [(row, gen.dedup.keep(found.tokens[row, : int(found.lengths[row])].tolist())) for row in rows]

    monkeypatch.setattr(gen, "alternatives", all_of_them)
    repeated = 0
    for hypos, before in zip(out, decode(gen, SOURCE)):
        once = [h for i, h in enumerate(before) if texts([h])[0] not in texts(before[:i])]
        assert [h["tokens"].tolist() for h in hypos] == [h["tokens"].tolist() for h in once]
        assert [h["score"] for h in hypos] == [h["score"] for h in once]
        assert all(torch.equal(h["positional_scores"], o["positional_scores"]) for h, o in zip(hypos, once))
        assert len(set(texts(hypos))) == len(hypos)
        repeated += len(before) - len(hypos)
    assert repeated > 0  # there was something to leave out
