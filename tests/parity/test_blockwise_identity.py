"""Blockwise decoding says what fairseq's greedy search says, whatever is drafted; near-ties are audited, not
excused.
"""

import copy
import itertools
import sys

import pytest
import torch
from conftest import ROOT, source_batch

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from blockwise_twin import (  # noqa: E402
    EOS,
    PAD,
    UNK,
    WORDS,
    Oracle,
    beam,
    blockwise,
    expected_calls,
    greedy,
    random_models,
    sample_of,
)

LENGTHS = [5, 9, 2, 7, 1, 12]  # the fifth source is empty
RIGHT = source_batch(LENGTHS, WORDS)
LEFT = torch.stack([row.roll(int(row.eq(PAD).sum())) for row in RIGHT])
TIE = 1e-4  # log-probabilities closer than this are rounding in float32
FORMS = {
    "post-norm": (),
    "pre-norm": ("--encoder-normalize-before", "--decoder-normalize-before"),
    "learned": (
        "--encoder-learned-pos",
        "--decoder-learned-pos",
        "--max-target-positions",
        "40",
        "--layernorm-embedding",
    ),
    "tied": ("--share-all-embeddings", "--activation-fn", "gelu", "--decoder-attention-heads", "4"),
    "projected": ("--decoder-output-dim", "48", "--no-scale-embedding"),
}


def gap(models, source, tokens):
    """Between the two best tokens after ``tokens``, by stock full passes."""
    probabilities = []
    for one in models:
        encoded = one.encoder(source.unsqueeze(0), src_lengths=torch.tensor([source.numel()]))
        logits = one.decoder(torch.tensor([[EOS, *tokens]]), encoder_out=encoded)[0][0, -1].double()
        logits[-1] = -float("inf")
        probabilities.append(logits.softmax(-1))
    best = torch.stack(probabilities).mean(0).log().topk(2).values
    return float(best[0] - best[1])


def compare(models, task, source, oracle, prefix=None, block=None, **settings):
    """Assert identity; returns the hypotheses and how many sentences needed the audit."""
    wanted = greedy(models, task, source, prefix, **settings)
    gen = blockwise(models, task, oracle(wanted), verify_block=block, **settings)
    found = [hypos[0] for hypos in gen.generate(models, sample_of(source), prefix_tokens=prefix)]
    audited = 0
    for row, mine, theirs in zip(source, found, wanted):
        said, stock = mine["tokens"].tolist(), theirs["tokens"].tolist()
        assert sum(mine["accepted"]) == len(said) and mine["steps"] == len(mine["accepted"]) <= len(said)
        if said != stock:
            common = next(i for i, (a, b) in enumerate(itertools.zip_longest(said, stock)) if a != b)
            assert gap(models, row[row.ne(PAD)], stock[:common]) < TIE, (said, stock)
            audited += 1
            continue
        torch.testing.assert_close(mine["positional_scores"], theirs["positional_scores"], atol=2e-4, rtol=0)
        assert mine["score"] == pytest.approx(float(theirs["score"]), abs=1e-3)
    return found, wanted, audited


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_identity(form):
    compared = audited = 0
    sizes = set()
    patterns = [(1, 0.0), (2, 0.3), (5, 0.3), (50, 0.05), (None, 0.3)]
    if form == "post-norm":
        patterns += [(5, 0.0), (50, 1.0)]
    for count, (source, (block, wrong)) in itertools.product(
        (1, 2), [*((RIGHT, pattern) for pattern in patterns), (LEFT, (5, 0.3)), (RIGHT[1:2], (5, 0.3))]
    ):
        models, task = random_models(*FORMS[form], count=count)
        found, wanted, ties = compare(
            models, task, source, lambda hypos: Oracle([h["tokens"] for h in hypos], wrong), block=block, max_len_b=24
        )
        compared, audited = compared + len(found), audited + ties
        sizes |= {len(hypo["tokens"]) for hypo in wanted}
        for hypo, stock, drafts in zip(found, wanted, Oracle([h["tokens"] for h in wanted], wrong).table.tolist()):
            if block is not None and hypo["tokens"].equal(stock["tokens"]):
                assert hypo["accepted"] == expected_calls(stock["tokens"], drafts, block, 24)
    assert audited <= 0.01 * compared
    assert len(sizes) > 2 and 25 in sizes, sizes  # short ones, and ones that the limit ends


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        dict(max_len_b=1),
        dict(max_len_b=5),
        dict(max_len_b=0),
        dict(max_len_a=1.5, max_len_b=2),
        dict(max_len_b=200),
        dict(max_len_b=24, min_len=8),
        dict(max_len_b=24, unkpen=-4.0),
        dict(max_len_b=24, unkpen=4.0),
        dict(max_len_b=24, lenpen=0.5),
        dict(max_len_b=24, unnormalized=True),
        dict(max_len_b=24, temperature=0.5),
    ],
    ids=str,
)
def test_options_are_those_of_greedy_search(settings):
    settings = {"min_len": 0 if settings.get("max_len_b") == 0 else 1, **settings}
    for count, wrong, block in ((2, 0.3, 4), (1, 0.0, 50)):  # 30 positions: a block may be longer
        models, task = random_models("--decoder-learned-pos", "--max-target-positions", "30", count=count)
        compare(models, task, RIGHT, lambda hypos: Oracle([h["tokens"] for h in hypos], wrong), block=block, **settings)


@torch.no_grad()
@pytest.mark.parametrize("junk", [PAD, EOS, UNK, 0, WORDS + 4])
def test_special_tokens_as_drafts_change_nothing(junk):
    models, task = random_models(seed=3)
    for settings in (dict(max_len_b=24, min_len=8), dict(max_len_b=24, unkpen=-4.0)):
        compare(models, task, RIGHT, lambda hypos: Oracle([h["tokens"] for h in hypos], 0.4, junk), block=5, **settings)


PREFIXES = {
    "one": [[4], [5], [6], [7], [8], [9]],
    "ragged": [[4, 5, 6], [7, PAD, PAD], [8, 9, PAD], [PAD, PAD, PAD], [10, 4, 4], [11, PAD, PAD]],
    "end": [[4, EOS, PAD], [EOS, PAD, PAD], [8, 9, EOS], [7, 7, 7], [10, EOS, PAD], [11, 12, PAD]],
    "unknown": [[UNK, 5], [UNK, UNK], [4, UNK], [5, 6], [7, UNK], [UNK, PAD]],
}


@torch.no_grad()
@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("settings", [dict(max_len_b=20), dict(max_len_b=2), dict(max_len_b=20, min_len=6)], ids=str)
def test_prefixes(name, settings):
    prefix = torch.tensor(PREFIXES[name])
    for count in (1, 2) if "min_len" in settings else (1,):
        models, task = random_models(count=count)
        found, _, _ = compare(
            models, task, RIGHT, lambda hypos: Oracle([h["tokens"] for h in hypos], 0.3), prefix, block=4, **settings
        )
        if name == "one" and settings["max_len_b"] == 20:
            assert all(hypo["accepted"][0] == min(2, len(hypo["tokens"])) for hypo in found)  # a single prefill


@torch.no_grad()
@pytest.mark.parametrize("drafter", ["jacobi", "copy"])
@pytest.mark.parametrize("block", [None, 6])
def test_drafters_of_a_stock_model(drafter, block):
    models, task = random_models(*FORMS["tied"], count=2)
    wanted = greedy(models, task, RIGHT, max_len_b=24)
    gen = blockwise(models, task, verify_block=block, max_len_b=24, drafter=drafter)
    assert [h[0]["tokens"].tolist() for h in gen.generate(models, sample_of(RIGHT))] == [
        h["tokens"].tolist() for h in wanted
    ]
    longest = max(len(hypo["tokens"]) for hypo in wanted)
    if drafter == "jacobi":  # the text repeats itself
        assert gen.statistics.decoder_calls < longest


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_differs_only_at_near_ties(dtype):
    models, task = random_models(seed=3)
    models = [copy.deepcopy(one).to(dtype) for one in models]
    wanted = greedy(models, task, RIGHT, max_len_b=24)
    same = 0
    for block in (1, 5):
        gen = blockwise(models, task, Oracle([h["tokens"] for h in wanted], 0.3), verify_block=block, max_len_b=24)
        for row, hypos, stock in zip(RIGHT, gen.generate(models, sample_of(RIGHT)), wanted):
            said, theirs = hypos[0]["tokens"].tolist(), stock["tokens"].tolist()
            same += said == theirs
            if said != theirs:
                common = next(i for i, (a, b) in enumerate(itertools.zip_longest(said, theirs)) if a != b)
                scale = 4 * 16 * torch.finfo(dtype).eps  # four units in the last place of a logit of 16
                assert gap(models, row[row.ne(PAD)], theirs[:common]) < scale
    assert same >= (10 if dtype == torch.float16 else 6)  # of 12; random models have many near-ties


@torch.no_grad()
def test_autocast():
    models, task = random_models(seed=3)
    gen = blockwise(models, task, verify_block=4, max_len_b=24, decode_dtype="bfloat16")
    assert all(hypos[0]["tokens"][-1] == EOS for hypos in gen.generate(models, sample_of(RIGHT)))


@torch.no_grad()
@pytest.mark.parametrize("how", ["hard", "soft"])
def test_alignments(how):
    from fairseq.sequence_generator import SequenceGeneratorWithAlignment

    models, task = random_models(count=2)
    stock = SequenceGeneratorWithAlignment(
        models, task.target_dictionary, beam_size=1, max_len_b=24, print_alignment=how
    )
    wanted = beam(stock, models, task.target_dictionary).generate(models, sample_of(RIGHT))
    oracle = Oracle([hypos[0]["tokens"] for hypos in wanted], 0.3)
    gen = blockwise(models, task, oracle, verify_block=4, max_len_b=24, print_alignment=how)
    for (mine,), (theirs,) in zip(gen.generate(models, sample_of(RIGHT)), wanted):
        assert mine["tokens"].equal(theirs["tokens"])
        torch.testing.assert_close(mine["attention"], theirs["attention"], atol=1e-4, rtol=0)
        assert mine["alignment"] == theirs["alignment"] or how == "soft"
        assert len(mine["alignment"]) == len(theirs["alignment"])
