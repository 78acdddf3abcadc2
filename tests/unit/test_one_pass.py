"""The generators of ``nat``: one pass, noisy parallel decoding, and the rescorer, each against brute force."""

import itertools
import logging
import math
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from conftest import source_batch
from tiny import model

from nar_plugins.generators.options import generation_options
from nar_plugins.generators.registry import CONFIGS, GENERATORS
from nar_plugins.models.contract import Plan
from nar_plugins.modules import source_copy

PAD, EOS, MASK, WORDS = 1, 2, 24, 20


def nat(*flags, arch="nat_tiny", seed=1, scale=8.0):
    """A model that is sure of what it says, in evaluation mode, and its task."""
    m, task = model("--share-all-embeddings", *flags, arch=arch, seed=seed)
    with torch.no_grad():
        m.decoder.output_projection.weight.mul_(scale)
        if getattr(m.encoder, "fertility_head", None) is not None:
            m.encoder.fertility_head.weight.mul_(6)
            m.encoder.fertility_head.bias.copy_(torch.arange(50).eq(1) * 4.0 - torch.arange(50) * 0.7)
    return m.eval(), task


def ar(task, seed=3, scale=6.0):
    """A stock AR transformer of random weights over the same dictionary."""
    m, _ = model("--share-all-embeddings", arch="transformer_tiny", criterion="cross_entropy", seed=seed)
    with torch.no_grad():
        m.decoder.output_projection.weight.mul_(scale)
    return m.eval()


def generator(name, models, task, rescorer=None, **settings):
    config = {f.name: f.default for f in fields(CONFIGS[name]) if not f.name.startswith("_")}
    ours = {key: settings.pop(key) for key in list(settings) if key in config}
    options = generation_options(SimpleNamespace(**settings))
    return GENERATORS[name](
        models, task.target_dictionary, SimpleNamespace(**{**config, **ours}), options, MASK, rescorer
    )


def decode(gen, source, target=None):
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}, "target": target}
    return gen.generate(gen.models, sample)


def logits_of(m, source, plan):
    """Logits (T, V) of one sentence alone, banned words at -inf, and the log-probabilities before the ban."""
    memory = m.encode(source.unsqueeze(0))
    canvas = m.canvas(memory, Plan(torch.tensor([0]), **({} if plan is None else {m.predicts: torch.tensor([plan])})))
    lprobs = m.project(m.decode(canvas, memory))[0].log_softmax(-1)
    return lprobs


def best(lprobs, banned=(0, PAD, MASK)):
    allowed = lprobs.clone()
    allowed[:, list(banned)] = -math.inf
    words = allowed.argmax(-1)
    return words.tolist(), lprobs.gather(1, words.unsqueeze(1)).squeeze(1)


SOURCE = source_batch([5, 9, 2, 7, 1], WORDS)


def sentences():
    return [row[row.ne(PAD)] for row in SOURCE]


# -- one pass
# ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("how", ["argmax", "average"])
def test_fertilities_decide_the_canvas_and_the_batch_does_not_matter(how):
    m, task = nat()
    out = decode(generator("one_pass", [m], task, fertility=how), SOURCE)
    for hypos, source in zip(out[:-1], sentences()):
        p = m.fertility_lprobs(m.encode(source.unsqueeze(0)))[0].exp()
        f = p.argmax(-1) if how == "argmax" else (p * torch.arange(50)).sum(-1).round().long()
        plan = [*f[:-1].tolist(), 1]
        words, scores = best(logits_of(m, source, plan))
        (hypo,) = hypos
        assert hypo["tokens"].tolist() == words and len(words) == sum(plan)
        torch.testing.assert_close(hypo["positional_scores"], scores, atol=1e-4, rtol=1e-4)
        assert hypo["score"] == pytest.approx(float(scores.mean()), abs=1e-4) and hypo["steps"] == 1
    assert out[-1][0]["tokens"].tolist() == [EOS]  # an empty source


@torch.no_grad()
def test_all_zero_and_far_too_large_fertilities():
    m, task = nat()
    m.encoder.fertility_head.weight.zero_()
    for fertility in (0, 49):
        m.encoder.fertility_head.bias.copy_(torch.arange(50).eq(fertility) * 100.0)
        out = decode(generator("one_pass", [m], task), SOURCE)
        # fairseq's --max-len-b is 200
        wanted = [1 + fertility * min(n - 1, 200 // max(1, fertility)) for n in (5, 9, 2, 7)]
        assert [len(hypos[0]["tokens"]) for hypos in out[:4]] == wanted
    short = decode(generator("one_pass", [m], task, max_len_a=2, max_len_b=0), SOURCE)
    assert all(len(hypos[0]["tokens"]) <= 2 * n + 1 for hypos, n in zip(short, (5, 9, 2, 7)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["uniform", "soft"])
def test_lengths_are_tried_and_ordered(kind):
    m, task = nat("--source-copy", kind)
    out = decode(generator("one_pass", [m], task, length_beam=4), SOURCE)
    for hypos, source in zip(out[:-1], sentences()):
        lprobs = m.length_lprobs(m.encode(source.unsqueeze(0)))[0][:201]
        lengths = sorted({max(2, int(n)) for n in lprobs.topk(4).indices})
        wanted = {n: best(logits_of(m, source, n)) for n in lengths}
        assert sorted(len(h["tokens"]) for h in hypos) == lengths
        for hypo in hypos:
            words, scores = wanted[len(hypo["tokens"])]
            assert hypo["tokens"].tolist() == words
            assert hypo["score"] == pytest.approx(float(scores.mean()), abs=1e-4)
        assert [h["score"] for h in hypos] == sorted((h["score"] for h in hypos), reverse=True)
    assert all(len(hypos) == 1 for hypos in decode(generator("one_pass", [m], task), SOURCE))  # one length by default


@torch.no_grad()
def test_a_length_has_its_share_of_the_score():
    m, task = nat("--source-copy", "uniform")
    plain = decode(generator("one_pass", [m], task, length_beam=4), SOURCE)
    weighted = decode(generator("one_pass", [m], task, length_beam=4, length_weight=2.0, lenpen=0.5), SOURCE)
    orders = set()
    for hypos, others, source in zip(weighted[:-1], plain, sentences()):
        lprobs = m.length_lprobs(m.encode(source.unsqueeze(0)))[0]
        scores = {tuple(h["tokens"].tolist()): float(h["positional_scores"].sum()) for h in others}
        for h in hypos:
            n = len(h["tokens"])
            wanted = (scores[tuple(h["tokens"].tolist())] + 2 * float(lprobs[n])) / n**0.5
            assert h["score"] == pytest.approx(wanted, abs=1e-4)
        assert [h["score"] for h in hypos] == sorted((h["score"] for h in hypos), reverse=True)
        orders.add([len(h["tokens"]) for h in hypos] == [len(h["tokens"]) for h in others])
    assert False in orders  # somewhere another length wins


@torch.no_grad()
def test_gold_lengths():
    m, task = nat("--source-copy", "uniform")
    target = source_batch([4, 8, 3, 6, 1], WORDS, seed=9)
    out = decode(generator("one_pass", [m], task, gold_length=True), SOURCE, target)
    assert [len(hypos[0]["tokens"]) for hypos in out[:4]] == [4, 8, 3, 6]


@torch.no_grad()
def test_an_ensemble_means_the_probabilities():
    models = [nat(seed=seed)[0] for seed in (1, 2)]
    task = nat()[1]
    out = decode(generator("one_pass", models, task), SOURCE)
    for hypos, source in zip(out[:-1], sentences()):
        p = torch.stack([m.fertility_lprobs(m.encode(source.unsqueeze(0)))[0].exp() for m in models]).mean(0)
        plan = [*p.argmax(-1)[:-1].tolist(), 1]
        mean = torch.stack([logits_of(m, source, plan).exp() for m in models]).mean(0).log()
        assert hypos[0]["tokens"].tolist() == best(mean)[0]
    one = decode(generator("one_pass", models[:1], task), SOURCE)
    twice = decode(generator("one_pass", [models[0], models[0]], task), SOURCE)
    assert [h[0]["tokens"].tolist() for h in one] == [h[0]["tokens"].tolist() for h in twice]


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_ctc(beam):
    m, task = nat("--ctc", scale=3.0)
    out = decode(generator("one_pass", [m], task, ctc_beam=beam), SOURCE)
    for hypos, source in zip(out[:-1], sentences()):
        lprobs = logits_of(m, source, None)
        path, scores = best(lprobs, banned=(0, PAD))
        if beam == 1:
            wanted = [token for token, _ in itertools.groupby(path) if token != MASK] or [EOS]
            assert hypos[0]["tokens"].tolist() == wanted
            assert hypos[0]["score"] == pytest.approx(float(scores.mean()), abs=1e-4)
        else:
            assert len(hypos) == 3 and len({tuple(h["tokens"].tolist()) for h in hypos}) == 3
            for h in hypos:  # an output's probability is the sum over its paths: minus the loss
                nll = torch.nn.functional.ctc_loss(
                    lprobs.unsqueeze(1),
                    h["tokens"].unsqueeze(0),
                    torch.tensor([len(lprobs)]),
                    torch.tensor([len(h["tokens"])]),
                    blank=MASK,
                    reduction="none",
                )
                assert h["score"] <= -float(nll) / len(lprobs) + 1e-4  # the beam may lose paths, never invent some
                assert float(h["positional_scores"].sum()) == pytest.approx(h["score"] * len(lprobs), rel=1e-3)
            assert hypos[0]["score"] * len(lprobs) >= float(scores.sum()) - 1e-4  # at least its best path
    assert all(MASK not in h["tokens"] and PAD not in h["tokens"] for hypos in out for h in hypos)


@torch.no_grad()
def test_a_ctc_output_of_blanks_alone_is_the_end():
    m, task = nat("--ctc")
    blank = m.decoder.output_projection.weight[MASK].clone()
    features = m.decoder.forward
    m.decoder.forward = lambda *a, **k: torch.zeros_like(features(*a, **k)) + blank * 100
    for beam in (1, 2):
        out = decode(generator("one_pass", [m], task, ctc_beam=beam), SOURCE)
        assert [hypos[0]["tokens"].tolist() for hypos in out] == [[EOS]] * 5


def test_history_is_the_one_pass():
    m, task = nat()
    out = decode(generator("one_pass", [m], task, retain_iter_history=True), SOURCE)
    assert [len(h["history"]) for hypos in out[:4] for h in hypos] == [1] * 4
    assert torch.equal(out[0][0]["history"][0]["tokens"], out[0][0]["tokens"])


@pytest.mark.parametrize(
    "flags, settings, message",
    [
        ((), {"length_beam": 3}, "--length-beam: these models predict no length"),
        ((), {"ctc_beam": 3}, "--ctc-beam: these models were not trained"),
        ((), {"gold_length": True}, "--gold-length"),
        ((), {"length_weight": 1.0}, "--length-weight: these models predict no length"),
        (("--ctc",), {"length_weight": 0.5}, "--length-weight: these models predict no length"),
        (("--source-copy", "uniform"), {"length_weight": -1.0}, "--length-weight -1.0: choose a number from 0 up"),
        (("--source-copy", "uniform"), {"length_weight": math.nan}, "--length-weight nan: choose a number from 0 up"),
        ((), {"min_len": 4}, "--min-len"),
        (("--ctc",), {"length_beam": 3}, "--length-beam"),
        (("--ctc",), {"ctc_beam": 0}, "--ctc-beam 0"),
        (("--ctc",), {"max_len_b": 50}, "--max-len-a/b cannot be honoured"),
        (("--source-copy", "uniform"), {"fertility": "average"}, "--fertility: these models have no fertilities"),
        (("--source-copy", "uniform"), {"length_beam": 0}, "--length-beam 0"),
        ((), {"beam": 3}, "--beam 3"),
        ((), {"sampling": True}, "--sampling cannot be honoured"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(flags, settings, message):
    m, task = nat(*flags)
    with pytest.raises(ValueError, match=message):
        generator("one_pass", [m], task, **settings)


def test_an_ensemble_of_different_canvases_is_refused():
    with pytest.raises(ValueError, match="an ensemble of nat models"):
        generator("one_pass", [nat()[0], nat("--ctc")[0]], nat()[1])


# -- rescoring
# -----------------------------------------------------------------------------------------------------------


def teacher_score(teacher, source, tokens):
    """Mean log-probability, token by token, of the words and the one </s> that ends them."""
    words = [t for t in tokens.tolist() if t != EOS] + [EOS]
    total, before = 0.0, [EOS]
    for token in words:
        logits, _ = teacher(source.unsqueeze(0), torch.tensor([len(source)]), torch.tensor([before]))
        logits[..., MASK] = -math.inf
        total += float(logits[0, -1].log_softmax(-1)[token])
        before.append(token)
    return total / len(words)


@torch.no_grad()
def test_noisy_parallel_decoding_takes_the_teachers_best_of_all_candidates(caplog):
    m, task = nat()
    teacher = ar(task)
    gen = generator("noisy_parallel", [m], task, teacher, fertility_samples=8)
    out = decode(gen, SOURCE)
    lengths = {len(h["tokens"]) for hypos in out for h in hypos}
    assert len(lengths) > 3  # the samples do differ
    for hypos, source in zip(out[:-1], sentences()):
        p = m.fertility_lprobs(m.encode(source.unsqueeze(0))).exp()
        draws = source_copy.candidate_draws(source.unsqueeze(0), PAD, 1, 6)
        vectors = [p[0].argmax(-1), source_copy.average(p[0]), *source_copy.sample(p.unsqueeze(1), draws)[0]]
        plans = {(*v[:-1].tolist(), 1) for v in vectors}
        wanted = {}
        for plan in plans:
            words, scores = best(logits_of(m, source, list(plan)))
            wanted.setdefault(tuple(words), float(scores.mean()))
        found = [tuple(h["tokens"].tolist()) for h in hypos]
        assert set(found) == set(wanted) and len(found) == len(plans)
        for h in hypos:
            assert (
                h["score"]
                == h["rescorer_score"]
                == pytest.approx(teacher_score(teacher, source, h["tokens"]), abs=1e-4)
            )
            assert h["model_score"] == pytest.approx(wanted[tuple(h["tokens"].tolist())], abs=1e-4)
        assert found[0] == max(wanted, key=lambda words: teacher_score(teacher, source, torch.tensor(words)))
    counts = gen.statistics
    assert counts.drawn == 40 and counts.decoded == sum(map(len, out[:-1])) + 1 == gen.rescorer.candidates
    with caplog.at_level(logging.INFO):
        gen.report()
    assert "5 sentences, 40 candidates; equal fertilities" in caplog.text


@torch.no_grad()
def test_samples_do_not_depend_on_the_batch():
    m, task = nat()
    teacher = ar(task)
    together = decode(generator("noisy_parallel", [m], task, teacher), SOURCE)
    alone = [decode(generator("noisy_parallel", [m], task, teacher), s.unsqueeze(0))[0] for s in sentences()]
    assert [h[0]["tokens"].tolist() for h in together] == [h[0]["tokens"].tolist() for h in alone]
    other = decode(generator("noisy_parallel", [m], task, teacher, sampling_seed=2), SOURCE)
    assert [len(h) for h in other] != [len(h) for h in together] or [h[0]["score"] for h in other] != [
        h[0]["score"] for h in together
    ]


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2])
def test_the_most_probable_and_the_expected_fertilities_come_first(number):
    m, task = nat()
    out = decode(generator("noisy_parallel", [m], task, ar(task), fertility_samples=number), SOURCE)
    sure = [decode(generator("one_pass", [m], task, fertility=how), SOURCE) for how in ("argmax", "average")[:number]]
    for hypos, *wanted in zip(out, *sure):
        assert {tuple(h["tokens"].tolist()) for h in hypos} == {tuple(w[0]["tokens"].tolist()) for w in wanted}


@torch.no_grad()
@pytest.mark.parametrize(
    "flags, settings", [(("--source-copy", "uniform"), {"length_beam": 6}), (("--ctc",), {"ctc_beam": 4})]
)
def test_a_rescorer_orders_lengths_and_ctc_outputs_too(flags, settings):
    m, task = nat(*flags, scale=2.0)
    teacher = ar(task)
    plain = decode(generator("one_pass", [m], task, **settings), SOURCE)
    out = decode(generator("one_pass", [m], task, teacher, **settings), SOURCE)
    for hypos, before, source in zip(out[:-1], plain, sentences()):
        scores = {tuple(h["tokens"].tolist()): teacher_score(teacher, source, h["tokens"]) for h in before}
        assert {tuple(h["tokens"].tolist()) for h in hypos} == set(scores)
        for h in hypos:
            assert h["score"] == pytest.approx(scores[tuple(h["tokens"].tolist())], abs=1e-4)
        assert [h["score"] for h in hypos] == sorted((h["score"] for h in hypos), reverse=True)


@torch.no_grad()
def test_equal_translations_are_scored_once_and_lenpen_is_honoured():
    m, task = nat("--source-copy", "uniform")
    gen = generator("one_pass", [m], task, ar(task), length_beam=3)
    tokens = torch.tensor([[5, 6, 2, 1], [5, 6, 2, 2], [5, 2, 6, 2], [7, 2, 1, 1]])  # the first three read alike
    scores = gen.rescorer(SOURCE, tokens, torch.tensor([3, 4, 4, 2]), torch.tensor([0, 0, 0, 0]))
    assert gen.rescorer.scored == 2 and gen.rescorer.candidates == 4
    assert scores[0] == scores[1] == scores[2] != scores[3]
    half = generator("one_pass", [m], task, gen.rescorer.model, lenpen=0.5)
    again = half.rescorer(SOURCE, tokens, torch.tensor([3, 4, 4, 2]), torch.tensor([0, 0, 0, 0]))
    torch.testing.assert_close(again[0] * 3**0.5, scores[0] * 3)


@pytest.mark.parametrize(
    "settings, message", [({"fertility_samples": 0}, "--fertility-samples 0"), ({"gold_length": True}, "--gold-length")]
)
def test_noisy_parallel_refuses(settings, message):
    m, task = nat()
    with pytest.raises(ValueError, match=message):
        generator("noisy_parallel", [m], task, ar(task), **settings)
    with pytest.raises(ValueError, match="give --rescorer CKPT"):
        generator("noisy_parallel", [m], task)
