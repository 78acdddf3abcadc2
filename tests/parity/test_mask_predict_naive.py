"""Fast Mask-Predict against a slow twin written from the paper, batch 1 against batch n, and the options' meaning."""

import functools
import math

import pytest
import torch
from conftest import mask_predict, random_model, source_batch

from nar_plugins.models.contract import Canvas

LENGTHS = [2, 3, 5, 9, 17, 33, 60]  # of the targets, one sentence each
SOURCES = [2, 4, 3, 12, 9, 30, 25]


def naive(model, source, length, passes, banned):
    """One sentence, one length, no cache: (tokens, their probabilities). A.2.3 of the specification, line by line."""
    memory = model.encode(source[None])
    y, p = [model.mask] * length, [0.0] * length
    for t in range(passes):
        count = length if t == 0 else max(1, length * (passes - t) // passes)
        chosen = sorted(range(length), key=lambda i: p[i])[:count] if t else range(length)
        for i in chosen:
            y[i] = model.mask
        probabilities = model.project(model.decode(Canvas(torch.tensor([y], device=source.device), None), memory))[
            0
        ].softmax(-1)
        allowed = probabilities.clone()
        allowed[:, banned] = -1
        for i in chosen:
            y[i] = int(allowed[i].argmax())
            p[i] = float(probabilities[i, y[i]])
    return y, p


@pytest.fixture(scope="module", params=[(), ("--length-head", "pooled")], ids=["token", "pooled"])
def model(request, device):
    model, task = random_model(flags=request.param)
    return model.double().to(device), task


@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize("passes", [1, 2, 4, 10])
def test_same_tokens_and_scores_as_the_naive_loop(model, passes, beam):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    target = source_batch(LENGTHS, 60, device=source.device)
    banned = [0, 1, task.mask_index]
    loop = mask_predict(
        [model], task.target_dictionary, task.mask_index, iterations=passes, length_beam=beam, gold_length=True
    )
    found = loop.generate([model], {"net_input": {"src_tokens": source}, "target": target})
    for b, hypotheses in enumerate(found):
        wanted = {max(2, LENGTHS[b] + d) for d in range(-((beam - 1) // 2), beam // 2 + 1)}
        assert {len(h["tokens"]) for h in hypotheses} == wanted and len(hypotheses) == len(wanted)
        for h in hypotheses:
            y, p = naive(model, source[b, : SOURCES[b]], len(h["tokens"]), passes, banned)
            assert h["tokens"].tolist() == y
            score = sum(map(math.log, p)) / len(p)
            assert h["score"] == pytest.approx(score, abs=1e-9)
            assert h["positional_scores"].tolist() == pytest.approx([math.log(x) for x in p], abs=1e-9)
        scores = [h["score"] for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_lengths_are_compared_with_their_own_probability(model):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    made = functools.partial(mask_predict, [model], task.target_dictionary, task.mask_index, iterations=4, max_len_b=40)
    sample, changed = {"net_input": {"src_tokens": source}}, 0
    together = made(length_weight=1.0).generate([model], sample)
    for b, (found, plain) in enumerate(zip(together, made().generate([model], sample))):
        lengths = model.length_lprobs(model.encode(source[b : b + 1, : SOURCES[b]]))[0].tolist()
        joint = {tuple(h["tokens"].tolist()): h["score"] + lengths[len(h["tokens"])] / len(h["tokens"]) for h in plain}
        wanted = sorted(joint, key=joint.get, reverse=True)
        assert [tuple(h["tokens"].tolist()) for h in found] == wanted
        assert [h["score"] for h in found] == pytest.approx([joint[tokens] for tokens in wanted], abs=1e-9)
        changed += wanted[0] != tuple(plain[0]["tokens"].tolist())
    assert changed


def outputs(loop, model, source):
    return [
        [(h["tokens"].tolist(), h["steps"]) for h in hs]
        for hs in loop.generate([model], {"net_input": {"src_tokens": source}})
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "cosine"}, {"schedule": "confidence", "confidence_threshold": 0.3}],
    ids=["linear", "cosine", "confidence"],
)
def test_batch_1_and_batch_n_agree(model, settings):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    loop = mask_predict([model], task.target_dictionary, task.mask_index, max_len_b=40, **settings)
    together = outputs(loop, model, source)
    for b, n in enumerate(SOURCES):
        assert outputs(loop, model, source[b : b + 1, :n]) == together[b : b + 1]


def naive_confidence(model, source, length, passes, tau, banned):
    """The commit rule, one sentence, one length, with sets: (tokens, their probabilities, the passes of its own)."""
    memory = model.encode(source[None])
    y, p, masked, t = [model.mask] * length, [0.0] * length, set(range(length)), 0
    while masked:
        t += 1
        for i in masked:
            y[i] = model.mask
        logits = model.project(model.decode(Canvas(torch.tensor([y], device=source.device), None), memory))
        probabilities = logits[0].softmax(-1)
        allowed = probabilities.clone()
        allowed[:, banned] = -1
        for i in masked:
            y[i] = int(allowed[i].argmax())
            p[i] = float(probabilities[i, y[i]])
        left = 0 if t == passes else max(1, length * (passes - t) // passes)  # as many as the linear schedule masks
        surest = sorted(masked, key=lambda i: p[i], reverse=True)
        committed = {i for i in masked if p[i] >= tau} | {surest[0]} | set(surest[: max(0, len(masked) - left)])
        masked -= committed
    return y, p, t


@pytest.mark.parametrize(
    "passes, tau", [(1, 0.9), (2, 0.5), (4, 0.3), (10, 0.3), (10, 0.9), (10, 1.0), (40, 0.5), (6, 0.0)]
)
def test_confidence_gives_the_tokens_scores_and_passes_of_the_naive_loop(model, passes, tau):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    target = source_batch(LENGTHS, 60, device=source.device)
    settings = dict(iterations=passes, length_beam=3, gold_length=True)
    if tau != 0.9:
        settings["confidence_threshold"] = tau
    loop = mask_predict([model], task.target_dictionary, task.mask_index, schedule="confidence", **settings)
    found = loop.generate([model], {"net_input": {"src_tokens": source}, "target": target})
    for b, hypotheses in enumerate(found):
        for h in hypotheses:
            y, p, steps = naive_confidence(
                model, source[b, : SOURCES[b]], len(h["tokens"]), passes, tau, [0, 1, task.mask_index]
            )
            assert h["tokens"].tolist() == y and h["steps"] == steps
            assert h["positional_scores"].tolist() == pytest.approx([math.log(x) for x in p], abs=1e-9)
    best = [hypotheses[0] for hypotheses in found]
    assert loop.statistics.tokens == sum(len(h["tokens"]) for h in best)
    assert loop.statistics.passes == sum(h["steps"] for h in best)


def test_confidence_saves_passes_and_never_masks_a_committed_token(model):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    beam = dict(max_len_b=40, length_beam=1)
    one_pass = mask_predict([model], task.target_dictionary, task.mask_index, iterations=1, **beam)
    first = one_pass.generate([model], {"net_input": {"src_tokens": source}})
    low = float(torch.cat([h["positional_scores"] for hs in first for h in hs]).exp().quantile(0.25))
    settings = dict(schedule="confidence", confidence_threshold=low, retain_iter_history=True, **beam)
    loop = mask_predict([model], task.target_dictionary, task.mask_index, **settings)
    calls, fill = [], loop.fill

    def spy(now, memories, picked, chosen):
        calls.append((picked, chosen))
        return fill(now, memories, picked, chosen)

    loop.fill = spy
    found = loop.generate([model], {"net_input": {"src_tokens": source}})
    steps = [h["steps"] for hs in found for h in hs]
    assert min(steps) < max(steps) and sum(steps) < 10 * len(steps)
    assert all(chosen.any(0).all() for picked, chosen in calls if picked is not None)  # no column for nothing
    assert len(calls[-1][1]) < len(calls[0][1]) == len(SOURCES)  # finished sentences leave the batch
    for h in (h for hs in found for h in hs):
        texts = [entry["tokens"].tolist() for entry in h["history"]]
        assert len(texts) == h["steps"] and texts[-1] == h["tokens"].tolist()
        changes = [sum(a != b for a, b in zip(old, new)) for old, new in zip(texts, texts[1:])]
        assert all(n < len(h["tokens"]) for n in changes)  # at least one is committed in every pass
    assert "tokens a pass" in loop.statistics.line()


def test_a_finished_canvas_leaves_the_batch_before_the_others_of_its_sentence(model):
    """Each pass has exactly the canvases that have an open position, and projects exactly these positions."""
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    target = source_batch(LENGTHS, 60, device=source.device)
    settings = dict(schedule="confidence", confidence_threshold=0.3, gold_length=True, length_beam=5, iterations=8)
    loop = mask_predict([model], task.target_dictionary, task.mask_index, **settings)
    fill, project, search = loop.fill, loop.best_tokens, loop.search
    passes, projected, decoded = [], [], []

    def spy(now, memories, picked, chosen):
        passes.append((len(now.tokens), chosen))
        return fill(now, memories, picked, chosen)

    def count(features):
        projected.append(len(features[0]))
        return project(features)

    loop.fill, loop.best_tokens = spy, count
    loop.search = lambda *batch: decoded.append(search(*batch)) or decoded[0]
    loop.generate([model], {"net_input": {"src_tokens": source}, "target": target})
    steps = decoded[0].steps.tolist()
    assert [canvases for canvases, _ in passes] == [sum(n >= step for n in steps) for step in range(1, len(passes) + 1)]
    assert all(chosen.any(1).all() for _, chosen in passes) and any(n % 5 for n, _ in passes)
    if source.device.type == "cpu":
        assert projected == [int(chosen.sum()) for _, chosen in passes]


def test_special_symbols_are_never_generated(model):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    table = model.decoder.embed_tokens.weight
    kept = table.detach().clone()
    with torch.no_grad():  # make them the best words everywhere
        table[[0, 1, task.mask_index]] *= 50
        table[[0, 1, task.mask_index]] += 3
        loop = mask_predict([model], task.target_dictionary, task.mask_index, max_len_b=40)
        tokens = {
            t
            for hs in loop.generate([model], {"net_input": {"src_tokens": source}})
            for h in hs
            for t in h["tokens"].tolist()
        }
        table.copy_(kept)
    assert not tokens & {0, 1, task.mask_index}


def test_an_ensemble_averages_probabilities(model):
    model, task = model
    device = next(model.parameters()).device
    other, _ = random_model(seed=2)
    other = other.double().to(device)
    source, target = source_batch([4, 6], 60, device=device), source_batch([5, 7], 60, device=device)
    loop = mask_predict(
        [model, other], task.target_dictionary, task.mask_index, iterations=1, length_beam=1, gold_length=True
    )
    found = loop.generate([model, other], {"net_input": {"src_tokens": source}, "target": target})
    for b in range(2):
        n = 5 + 2 * b
        blank = torch.full((1, n), task.mask_index, device=device)
        mean = (
            sum(
                m.project(m.decode(Canvas(blank, None), m.encode(source[b : b + 1, : 4 + 2 * b]))).softmax(-1)[0]
                for m in (model, other)
            )
            / 2
        )
        mean[:, [0, 1, task.mask_index]] = 0
        assert found[b][0]["tokens"].tolist() == mean.argmax(-1).tolist()
        assert found[b][0]["positional_scores"].tolist() == pytest.approx(mean.max(-1).values.log().tolist(), abs=1e-9)
    twice = mask_predict([model, model], task.target_dictionary, task.mask_index).generate(
        [model], {"net_input": {"src_tokens": source}}
    )
    once = mask_predict([model], task.target_dictionary, task.mask_index).generate(
        [model], {"net_input": {"src_tokens": source}}
    )
    assert [h["tokens"].tolist() for hs in twice for h in hs] == [h["tokens"].tolist() for hs in once for h in hs]


def test_an_empty_source_gives_an_empty_hypothesis_beside_others(model):
    model, task = model
    source = source_batch([1, 6], 60, device=next(model.parameters()).device)
    found = mask_predict([model], task.target_dictionary, task.mask_index).generate(
        [model], {"net_input": {"src_tokens": source}}
    )
    assert found[0][0]["tokens"].tolist() == [2] and len(found[0]) == 1
    assert len(found[1]) > 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decodes(model, dtype):
    model, task = model
    model = random_model()[0].to(next(model.parameters()).device)
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    found = mask_predict([model], task.target_dictionary, task.mask_index, decode_dtype=dtype, max_len_b=30).generate(
        [model], {"net_input": {"src_tokens": source}}
    )
    assert all(h["positional_scores"].dtype == torch.float32 and math.isfinite(h["score"]) for hs in found for h in hs)


def test_length_options_of_fairseq_bound_the_candidates(model):
    model, task = model
    source = source_batch(SOURCES, 60, device=next(model.parameters()).device)
    found = mask_predict(
        [model], task.target_dictionary, task.mask_index, max_len_a=1, max_len_b=3, min_len=4
    ).generate([model], {"net_input": {"src_tokens": source}})
    for n, hs in zip(SOURCES, found):
        assert all(5 <= len(h["tokens"]) <= max(5, n + 3 + 1) for h in hs)
