"""The model ``blockwise``: its heads, its base, and checkpoints."""

import re

import pytest
import torch
from blockwise_twin import sequential_state
from conftest import source_batch
from tiny import model, total

from nar_plugins.models.blockwise.model import HeadObjective
from nar_plugins.models.blockwise.parallel_heads import ProposalHeads

WORDS, PAD, EOS = 20, 1, 2


def blockwise(*flags, **kwargs):
    return model(*flags, arch="blockwise_tiny", criterion="blockwise_loss", **kwargs)


def transformer(seed=1):
    flags = ("--encoder-ffn-embed-dim", "128", "--encoder-attention-heads", "4", "--decoder-attention-heads", "4")
    return model(*flags, arch="transformer_tiny", criterion="cross_entropy", seed=seed)[0]


def shaken(one):
    """With heads that say something of their own."""
    torch.manual_seed(9)
    with torch.no_grad():
        one.decoder.proposal_heads.weight.normal_(std=0.1)
        one.decoder.proposal_heads.bias.normal_(std=0.1)
    return one.eval()


# -- heads -------------------------------------------------------------------------------------------------------------


def test_the_first_layer_is_shared_by_all_heads_and_each_has_a_residual():
    torch.manual_seed(1)
    heads = ProposalHeads(3, 4, 5, "full", 0.0, 0.0)
    with torch.no_grad():
        heads.weight.normal_()
        heads.bias.normal_()
    x = torch.randn(2, 7, 4)
    hidden = (x @ heads.hidden_layer.weight.t() + heads.hidden_layer.bias).relu()
    assert hidden.shape == (2, 7, 15)
    for i in range(3):
        torch.testing.assert_close(heads(x)[:, :, i], x + hidden @ heads.weight[i].t() + heads.bias[i])


def test_diagonal_heads_see_their_own_units():
    torch.manual_seed(1)
    heads = ProposalHeads(3, 4, 5, "diag", 0.0, 0.0)
    with torch.no_grad():
        heads.weight.normal_()
    x = torch.randn(6, 4)
    hidden = (x @ heads.hidden_layer.weight.t() + heads.hidden_layer.bias).relu()
    for i in range(3):
        torch.testing.assert_close(
            heads(x)[:, i], x + hidden[:, 5 * i : 5 * i + 5] @ heads.weight[i].t() + heads.bias[i]
        )


@pytest.mark.parametrize("kind, count", [("full", 3 * 4 * 5 * (1 + 3)), ("diag", 2 * 3 * 4 * 5)])
def test_some_heads_are_those_of_all_and_the_parameters_are_counted(kind, count):
    torch.manual_seed(1)
    heads = ProposalHeads(3, 4, 5, kind, 0.0, 0.0)
    with torch.no_grad():
        heads.weight.normal_()
    x = torch.randn(2, 4)
    for first, last in ((0, 1), (1, 3), (0, 3), (2, None)):
        torch.testing.assert_close(heads(x, first, last), heads(x)[:, first:last])
    assert heads.hidden_layer.weight.numel() + heads.weight.numel() == count
    shared, each = heads.multiplications()
    assert shared + 3 * each == count


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--freeze-base",),
        ("--block-head", "diag"),
        ("--block-size", "1"),
        ("--block-head", "sequential", "--block-size", "1"),
    ],
)
def test_every_head_starts_as_the_base(flags):
    one, _ = blockwise(*flags)
    one.eval()
    x = torch.randn(3, 5, 64)
    plain = one.decoder.output_projection(x)
    torch.testing.assert_close(one.decoder.output_layer(x), plain)
    for head in range(1, one.decoder.block_size + 1):
        torch.testing.assert_close(one.decoder.head_features(x, head, head).squeeze(-2), x)


def test_head_numbers_with_and_without_an_identity():
    x = torch.randn(3, 64)
    learned, frozen = shaken(blockwise()[0]), shaken(blockwise("--freeze-base")[0])
    assert learned.decoder.proposal_heads.heads == 4 and frozen.decoder.proposal_heads.heads == 3
    assert not learned.decoder.head_features(x, 1, 1)[:, 0].equal(x)
    assert frozen.decoder.head_features(x, 1, 1)[:, 0].equal(x)
    for one in (learned, frozen):
        together = one.decoder.head_features(x, 1, 4)
        for head in range(1, 5):
            torch.testing.assert_close(one.decoder.head_features(x, head, head)[:, 0], together[:, head - 1])
    assert list(learned.trained_heads()) == [1, 2, 3, 4] and list(frozen.trained_heads()) == [2, 3, 4]
    plain = blockwise("--block-size", "1")[0]
    assert plain.decoder.proposal_heads is None  # an ordinary Transformer


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--block-size", "0"), "--block-size 0: at least one head"),
        (("--block-ffn-dim", "0"), "--block-ffn-dim 0"),
        (("--freeze-base", "--block-size", "1"), "leaves nothing to train"),
        (("--adaptive-softmax-cutoff", "5,10"), "--adaptive-softmax-cutoff does not work"),
        (("--cross-self-attention",), "--cross-self-attention does not work"),
    ],
)
def test_what_has_no_meaning_is_refused(flags, said):
    with pytest.raises(ValueError, match=said) as error:
        blockwise(*flags)
    assert "\n" not in str(error.value)


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_frozen_base_is_in_evaluation_mode_and_has_no_gradients():
    one, _ = blockwise("--freeze-base", "--dropout", "0.5")
    one.train()
    assert not one.encoder.training and not one.decoder.layers[0].training and one.decoder.proposal_heads.training
    source = source_batch([5, 4], WORDS)
    total(
        one(source, source.ne(PAD).sum(1), source, target=source, objective=HeadObjective({2: 1.0, 3: 1.0}))
    ).backward()
    for name, weight in one.named_parameters():
        assert (weight.grad is not None) == name.startswith("decoder.proposal_heads."), name
    assert one.eval().training is False and not one.decoder.proposal_heads.training


def test_the_targets_of_a_head_lie_as_far_ahead():
    one, _ = blockwise("--freeze-base")
    one = shaken(one)
    source, before = source_batch([6, 4], WORDS), torch.tensor([[EOS, 4, 5, 6, 7], [EOS, 8, 9, PAD, PAD]])
    target = torch.tensor([[4, 5, 6, 7, EOS], [8, 9, EOS, PAD, PAD]])
    asked = {1: 1.0, 2: 0.5, 3: 0.25, 4: 2.0}
    found = one(source, source.ne(PAD).sum(1), before, target=target, objective=HeadObjective(asked))
    features = one.decoder.extract_features(before, encoder_out=one.encoder(source, src_lengths=source.ne(PAD).sum(1)))[
        0
    ]
    wanted = {1: [[4, 5, 6, 7, 2], [8, 9, 2]], 2: [[5, 6, 7, 2], [9, 2]], 3: [[6, 7, 2], [2]], 4: [[7, 2], []]}
    whole = 0
    for head, ahead in wanted.items():
        lprobs = one.decoder.output_projection(one.decoder.head_features(features, head, head)[:, :, 0]).log_softmax(-1)
        pairs = [(lprobs[b, t], word) for b, words in enumerate(ahead) for t, word in enumerate(words)]
        nll = -sum(row[word] for row, word in pairs)
        whole = whole + asked[head] * nll
        part = found[f"h{head}"]
        assert part.count == len(pairs)
        torch.testing.assert_close(part.nll, nll)
        torch.testing.assert_close(part.loss, asked[head] * nll)
        assert part.correct == sum(int(row.argmax()) == word for row, word in pairs)
    torch.testing.assert_close(total(found), whole)


@pytest.mark.parametrize("flags", [(), ("--freeze-base",)])
def test_sequential_heads_are_told_the_targets_before_theirs(flags):
    """In training all positions are packed and go together; by hand each is by itself."""
    one = shaken(blockwise("--block-head", "sequential", *flags)[0])
    source, before = source_batch([6, 4], WORDS), torch.tensor([[EOS, 4, 5, 6, 7], [EOS, 8, 9, PAD, PAD]])
    target = torch.tensor([[4, 5, 6, 7, EOS], [8, 9, EOS, PAD, PAD]])
    taken = torch.ones(2, 4, 5, dtype=torch.bool)
    taken[0, 1, 2] = taken[0, 0, 4] = False  # heads 2 to 4 skip a position, and head 1 another
    asked = {1: 1.0, 2: 0.5, 3: 0.25, 4: 2.0}
    objective = HeadObjective(asked, positions=taken)
    found = one(source, source.ne(PAD).sum(1), before, target=target, objective=objective)
    whole, counts = 0, dict.fromkeys(asked, 0)
    for b in range(2):
        real = source[b][source[b].ne(PAD)]
        words = target[b][target[b].ne(PAD)].tolist()
        encoded = one.encoder(real.unsqueeze(0), src_lengths=torch.tensor([real.numel()]))
        features = one.decoder.extract_features(before[b : b + 1], encoder_out=encoded)[0][0]
        for t in range(len(words)):
            state = features[t]
            for head in range(1, min(4, len(words) - t) + 1):
                if head > 1:
                    state = sequential_state(one, real, features[t], state, words[t + head - 2], head)
                if taken[b, min(head, 2) - 1, t]:
                    nll = -one.decoder.output_projection(state).log_softmax(-1)[words[t + head - 1]]
                    whole, counts[head] = whole + asked[head] * nll, counts[head] + 1
    torch.testing.assert_close(total(found), whole)
    assert {int(name[1:]): int(part.count) for name, part in found.items()} == counts == {1: 7, 2: 5, 3: 3, 4: 2}


def test_sequential_heads_start_as_the_base_and_leave_head_1_to_it():
    one = blockwise("--block-head", "sequential")[0].eval()
    assert list(one.trained_heads()) == [1, 2, 3, 4]
    source = source_batch([6, 6], WORDS)
    lengths, target = source.ne(PAD).sum(1), source.flip(1)
    with torch.no_grad():
        features = one.decoder.extract_features(source, encoder_out=one.encoder(source, src_lengths=lengths))[0]
        assert one.decoder.head_features(features, 1, 1).squeeze(-2).equal(features)
        lprobs = one.decoder.output_projection(features).log_softmax(-1)
        found = one(source, lengths, source, target=target, objective=HeadObjective({1: 1.0, 2: 1.0, 4: 1.0}))
    assert set(found) == {"h1", "h2", "h4"}
    for name, sums in found.items():
        ahead = target[:, int(name[1:]) - 1 :]
        wanted = -lprobs[:, : ahead.size(1)].gather(2, ahead.unsqueeze(-1)).sum()
        torch.testing.assert_close(sums.nll, wanted)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_stock_checkpoint_becomes_the_base_and_says_the_same():
    base = transformer().eval()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    for key in ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state[key] = state[key][:-1]  # it was trained without <mask>
    one, _ = blockwise("--freeze-base", seed=5)
    one.load_state_dict(state)
    one.eval()
    source = source_batch([5, 9, 2], WORDS)
    mine, theirs = (m(source, source.ne(PAD).sum(1), source)[0] for m in (one, base))
    torch.testing.assert_close(mine[..., :-1], theirs[..., :-1])


def test_a_part_of_the_heads_or_other_heads_are_an_error():
    whole = shaken(blockwise()[0]).state_dict()
    again, _ = blockwise(seed=4)
    again.load_state_dict({key: value.clone() for key, value in whole.items()})
    assert all(again.state_dict()[key].equal(value) for key, value in whole.items())
    for key in [key for key in whole if ".proposal_heads." in key]:
        part = {k: v.clone() for k, v in whole.items() if k != key}
        with pytest.raises(ValueError, match=f"has proposal heads, but no {re.escape(key)}: it is incomplete"):
            blockwise()[0].load_state_dict(part)
    with pytest.raises(ValueError, match=r"decoder.proposal_heads.weight is .* give the --block-size"):
        blockwise("--freeze-base")[0].load_state_dict(dict(whole))
