"""``--min-block`` is kept, whatever decides the size of a block, and ``--accept-top`` has a dictionary to choose
from.
"""

import pytest
import torch
from blockwise_twin import PAD, WORDS, Oracle, blockwise, greedy, random_models
from test_blockwise_generator import SOURCE, decode, with_heads
from tiny import model

from nar_plugins.generators.left_to_right.drafters.base import Drafts
from nar_plugins.generators.left_to_right.drafters.length_policy import DraftLengthPolicy


class Unsure(Oracle):
    """Proposals that are always wrong, and that say so."""

    max_draft_tokens = 6

    def draft(self, verified, count, state):
        tokens = super().draft(verified, count, state).tokens
        return Drafts(tokens, torch.full(tokens.shape, -5.0))


class Stopping(Unsure):
    adaptive_length = True


@pytest.mark.parametrize("kind", [Unsure, Stopping])
@pytest.mark.parametrize("least", [2, 3, 6])
@pytest.mark.parametrize("block", [None, 6])
def test_at_least_so_many_tokens_are_accepted_in_every_call_after_the_first(kind, least, block):
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=30)
    drafter = kind([torch.full((31,), 7)] * len(SOURCE), 0.0)
    found = decode(blockwise(models, task, drafter, verify_block=block, min_block=least, max_len_b=30))
    calls = [count for hypo in found for count in hypo["accepted"][1:-1]]  # the last may end the sentence
    assert len(calls) > 10 and min(calls) >= least
    assert [h["tokens"].tolist() for h in found] != [h["tokens"].tolist() for h in wanted]


@pytest.mark.parametrize("head", ["full", "sequential"])
def test_heads_that_are_unsure_are_believed_too(head):
    other = dict(arch="blockwise_tiny", criterion="blockwise_loss")
    one, task = with_heads() if head == "full" else model("--block-head", head, **other)
    found = decode(blockwise([one.eval()], task, min_block=3, max_len_b=16))
    counts = [count for hypo in found for count in hypo["accepted"][1:-1]]
    # once a head proposes a </s> that greedy search would not say, and that is never believed
    assert len(counts) > 10 and sum(count < 3 for count in counts) <= 1


def test_there_may_be_no_room():
    drafter = Unsure([torch.tensor([7])], 0.0)
    policy = DraftLengthPolicy(drafter, None, "cpu", min_draft_tokens=4)
    assert [policy.budget(64, room) for room in (9, 4, 3, 0, -1)] == [4, 4, 3, 0, 0]
    unsure = [Drafts(torch.full((1, n), 7), torch.full((1, n), -5.0)) for n in (6, 4, 2)]
    assert [policy.verify_length(drafts) for drafts in unsure] == [4, 4, 2]
    assert policy.min_survival(1) == 0.0 and DraftLengthPolicy(drafter, None, "cpu").budget(64, 9) < 4


def test_more_than_there_are_proposals_is_refused():
    one, task = with_heads()
    with pytest.raises(ValueError, match="--min-block 5: these proposals are for blocks of at most 4 tokens"):
        blockwise([one], task, min_block=5)
    blockwise([one], task, min_block=4)
    with pytest.raises(ValueError, match="--min-block 17: .* at most 16 tokens"):
        blockwise(*random_models(), min_block=17)


def test_more_than_there_are_words_is_refused():
    models, task = random_models()
    size = len(task.target_dictionary)
    assert size == WORDS + 5
    with pytest.raises(ValueError, match=f"--accept-top {size + 1}: the dictionary has {size} symbols"):
        blockwise(models, task, accept="top", accept_top=size + 1)
    decode(blockwise(models, task, accept="top", accept_top=size))


@pytest.mark.parametrize("settings", [{}, dict(min_block=3), dict(accept="top", accept_top=20)])
def test_the_padding_of_a_prefix_is_not_accepted(settings):
    models, task = random_models()
    source = SOURCE[[1, 1]]
    prefix = torch.tensor([[10, PAD, PAD], [11, 12, 13]])

    def found(sentences, width):
        gen = blockwise(models, task, verify_block=4, max_len_b=16, **settings)
        return decode(gen, source[:sentences], prefix_tokens=prefix[:sentences, :width])[0]

    alone, together = found(1, 1), found(2, 3)
    assert together["tokens"].tolist() == alone["tokens"].tolist() and together["accepted"] == alone["accepted"]
    assert together["tokens"][0] == 10 and len(alone["tokens"]) > 5
