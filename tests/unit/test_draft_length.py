"""How many drafts are made: what the policy learns, and that drafts that are always wrong cost little."""

import math

import pytest
import torch
from blockwise_twin import Oracle, blockwise, greedy, random_models
from test_bang_generator import random_bang
from test_blockwise_generator import SOURCE, decode, texts, with_heads
from tiny import model

from nar_plugins.generators.left_to_right.drafters import JacobiDrafter
from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts
from nar_plugins.generators.left_to_right.drafters.length_policy import (
    PROBE_SHARE,
    WINDOW,
    AcceptanceHistory,
    DraftLengthPolicy,
)


class Dear(Drafter):
    """As dear as sequential heads: 0.2 of a call each, 0.7 of a token a sentence, and a start."""

    adaptive_length, max_draft_tokens = True, 7

    def cost_per_row(self, count):
        return 0.7 * count

    def fixed_cost(self, count):
        return 0.2 * count

    def begin_cost_per_token(self):
        return 0.1


class Translating(Drafter):
    """As dear as a model that translates the batch first."""

    def begin_cost_per_token(self):
        return 2.0

    def begin_fixed_cost(self):
        return 2.0


class Masks(Drafter):
    """As dear as BANG's."""

    def verify_cost(self, count):
        return 2.0 * (count + 1)

    def cost_per_row(self, count):
        return float(count * (count + 1))


def run(drafter, sentences, batches, right, history=None, calls=20):
    """The cost of some batches over that of one token a call, and the drafts of every call.

    Args:
        right: the number of drafts that are accepted in every sentence.
    """
    history, cost, base, drafted = history or AcceptanceHistory(), 0.0, 0.0, []
    for _ in range(batches):
        policy = DraftLengthPolicy(drafter, None, "cpu", history=history, shape=(sentences, calls))
        for _ in range(calls):
            count = policy.budget(sentences, 100)
            base += policy.call_cost(sentences, 0)
            cost += policy.call_cost(sentences, count) + (policy.begin_cost if count else 0.0)
            if count:
                policy.begun()
            policy.update([min(count, right)] * sentences, count)
            drafted.append(count)
    return cost / base, drafted


@pytest.mark.parametrize("sentences", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("drafter", [Drafter(), JacobiDrafter(), Dear(), Masks(), Translating()])
def test_drafts_that_are_always_wrong_cost_little(drafter, sentences):
    history = AcceptanceHistory()
    first, _ = run(drafter, sentences, 1, 0, history)
    later, _ = run(drafter, sentences, 100, 0, history)
    assert later <= 1.01 + PROBE_SHARE and first <= 1.7  # the first batch of a run pays for what is learnt


@pytest.mark.parametrize("sentences", [1, 4])  # for eight, masks that are right cost what they bring
@pytest.mark.parametrize("drafter", [Drafter(), JacobiDrafter(), Dear(), Masks()])
def test_probes_find_that_drafts_have_become_right(drafter, sentences):
    history = AcceptanceHistory()
    run(drafter, sentences, 20, 0, history)
    _, drafted = run(drafter, sentences, 200, 100, history)
    assert drafted[0] == 0 and min(drafted[-20:]) > 0


def test_probes_become_rarer():
    _, drafted = run(Drafter(), 1, 400, 0)
    calls = [i for i, count in enumerate(drafted) if count]
    gaps = [after - before for before, after in zip(calls, calls[1:]) if after - before > 1]
    # a call costs 17, a probe 3 more, and 2 % of what passed since the last pays for it 2, 4, 8 .. 64 times over
    assert gaps[:4] == [19, 37, 72, 143] and set(gaps[6:]) <= {566, 567}


def test_what_was_thrown_away_counts_by_its_own_probability():
    policy = DraftLengthPolicy(Dear(), None, "cpu")
    unsure = Drafts(torch.zeros(4, 3, dtype=torch.long), torch.tensor([0.02, 0.5, 0.25]).log().expand(4, 3))
    assert policy.verify_length(unsure) == 0
    assert policy.trials[:4] == pytest.approx([4 + 4, 4 + 4 * 0.02, 4 + 4 * 0.01, 4])
    assert policy.accepted[:4] == pytest.approx([2.8 + 4 * 0.02, 2.8 + 4 * 0.01, 2.8 + 4 * 0.0025, 2.8])
    sure = Drafts(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0.9, 0.01]]).log())
    before = policy.trials[:2]
    assert policy.verify_length(sure) == 1 and policy.trials[:2] == pytest.approx([before[0], before[1] + 0.9])
    policy.update([1, 0, 1], 1)
    assert policy.trials[0] == before[0] + 3 and policy.accepted[0] == pytest.approx(2.8 + 4 * 0.02 + 2)


def test_a_batch_starts_with_what_the_run_has_seen():
    history = AcceptanceHistory()
    run(Dear(), 1, 30, 100, history)
    assert DraftLengthPolicy(Dear(), None, "cpu", history=history).budget(1, 20) == 7
    policy = DraftLengthPolicy(Dear(), None, "cpu", history=history)
    assert policy.trials[0] == 4 and policy.accepted[0] / 4 == pytest.approx(1, abs=0.01)
    assert history.trials[0] == pytest.approx(WINDOW)  # older calls fade
    run(Dear(), 1, 30, 0, history)
    assert DraftLengthPolicy(Dear(), None, "cpu", history=history).budget(1, 20) == 0
    assert DraftLengthPolicy(Dear(), None, "cpu").budget(1, 20) == 7  # without a history nothing is known


class Counting(Oracle):
    """Counts what is asked of it."""

    begins = drafts = 0

    def begin(self, sample, encoded):
        self.begins += 1

    def draft(self, verified, count, state):
        self.drafts += 1
        return super().draft(verified, count, state)


def test_nothing_is_computed_where_nothing_will_be_proposed():
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    counting = Counting([h["tokens"] for h in wanted], 1.0)
    gen = blockwise(models, task, counting, max_len_b=24)
    for _ in range(20):
        assert texts(decode(gen)) == texts(wanted)
    assert 0 < counting.drafts < 0.1 * gen.statistics.decoder_calls and counting.begins < 20
    one = blockwise(models, task, counting, verify_block=1, max_len_b=24)
    before = counting.begins
    assert texts(decode(one)) == texts(wanted) and counting.begins == before


def test_lossy_outputs_do_not_depend_on_the_batches_before():
    one, task = with_heads()
    gen = blockwise([one], task, max_len_b=16, accept="top", accept_top=20)
    first = decode(gen)
    for _ in range(3):
        decode(gen, SOURCE.flip(1)[:2])
    again = decode(gen)
    assert texts(again) == texts(first) and [h["accepted"] for h in again] == [h["accepted"] for h in first]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "diag", "sequential", "masks", "jacobi", "copy"])
def test_random_drafts_are_given_up_and_the_output_stays(kind):
    if kind == "masks":
        one, task = random_bang()
    elif kind in ("jacobi", "copy"):
        (one,), task = random_models("--share-all-embeddings")
    else:
        one, task = with_heads("--block-head", kind)
        one.decoder.proposal_heads.weight.normal_(std=3.0)
    settings = dict(drafter=kind) if kind in ("jacobi", "copy") else {}
    plain = blockwise([one], task, verify_block=1, max_len_b=16, **settings)
    gen = blockwise([one], task, max_len_b=16, **settings)
    again = blockwise([one], task, max_len_b=16, **settings)
    for sources in [SOURCE, *SOURCE.split(1)] * 3:
        wanted = decode(plain, sources)
        found, same = decode(gen, sources), decode(again, sources)
        assert texts(found) == texts(wanted)
        assert [h["accepted"] for h in found] == [h["accepted"] for h in same]  # nothing is left to chance


def test_a_source_that_a_drafting_model_cannot_read_is_refused_whether_it_drafts_or_not():
    models, task = random_models()
    short = model("--max-source-positions", "8")[0].eval()
    gen = blockwise(models, task, drafts_from=short, verify_block=1, max_len_b=16)
    with pytest.raises(ValueError, match="drafter"):
        decode(gen)
    assert math.isfinite(float(decode(gen, SOURCE[:1, :6])[0]["score"]))
