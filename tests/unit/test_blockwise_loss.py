"""The criterion ``blockwise_loss``: its three forms, what it logs, and that validation is deterministic."""

import math

import pytest
import torch
from conftest import source_batch
from fairseq import metrics
from tiny import model, total

from nar_plugins.criterions.blockwise_loss import BlockwiseLoss
from nar_plugins.models.blockwise.model import HeadObjective

SOURCE = source_batch([5, 9, 4], 20)
TARGET = source_batch([6, 3, 8], 20, seed=8)


def batch(update=3):
    before = TARGET.roll(1, 1)
    before[:, 0] = 2
    return {
        "target": TARGET,
        "ntokens": int(TARGET.ne(1).sum()),
        "id": torch.arange(3),
        "update": update,
        "net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(1).sum(1), "prev_output_tokens": before},
    }


def build(*flags, **settings):
    one, task = model(*flags, arch="blockwise_tiny", criterion="blockwise_loss")
    torch.manual_seed(4)
    with torch.no_grad():
        one.decoder.proposal_heads.weight.normal_(std=0.1)
    return one.train(), BlockwiseLoss(task, **{"label_smoothing": 0.1, **settings})


def drawn(one, criterion, update):
    (head,) = criterion.weights(one, batch(update))
    return head


@pytest.mark.parametrize("flags, heads", [((), {1, 2, 3, 4}), (("--freeze-base",), {2, 3, 4})])
def test_the_sampled_head_is_a_function_of_seed_and_update(flags, heads):
    one, criterion = build(*flags)
    draws = [drawn(one, criterion, update) for update in range(200)]
    assert set(draws) == heads
    assert all(draws.count(head) > 100 / len(heads) for head in heads)
    torch.manual_seed(77)
    assert draws == [drawn(one, criterion, update) for update in range(200)]
    criterion.task.cfg.seed = 5
    assert draws != [drawn(one, criterion, update) for update in range(200)]


@pytest.mark.parametrize("flags", [(), ("--freeze-base",), ("--block-head", "diag")])
def test_the_mean_is_what_sampling_expects(flags):
    one, sample = build(*flags)
    _, mean = build(*flags, block_loss="mean")
    heads = list(one.trained_heads())
    parts = {}
    for update in range(100):
        parts[drawn(one, sample, update)] = sample(one, batch(update))
    assert sorted(parts) == heads
    loss, targets, logs = mean(one, batch())
    torch.testing.assert_close(loss, sum(part[0] for part in parts.values()))
    assert targets == sum(part[1] for part in parts.values())
    (a,) = torch.autograd.grad(loss, one.decoder.proposal_heads.weight)
    b = sum(torch.autograd.grad(part[0], one.decoder.proposal_heads.weight)[0] for part in parts.values())
    torch.testing.assert_close(a, b)
    assert all(logs[f"h{head}_count"] == int(TARGET[:, head - 1 :].ne(1).sum()) for head in heads)


def test_positions_are_a_function_of_seed_update_and_sentence():
    one, criterion = build(block_loss="mean", block_positions=0.3)
    taken = criterion.trained_positions(one, batch())
    assert taken.shape == (3, 4, TARGET.size(1)) and 0.1 < taken.double().mean() < 0.5
    other = {**batch(), "id": torch.tensor([2, 0, 9]), "target": TARGET[:, :5]}  # another batch, with less padding
    assert torch.equal(criterion.trained_positions(one, other)[:2], taken[[2, 0], :, :5])
    assert not torch.equal(criterion.trained_positions(one, batch(update=4)), taken)
    assert not torch.equal(taken[:, 0], taken[:, 1])  # every head its own
    assert criterion.trained_positions(one.eval(), batch()) is None


def test_a_head_is_trained_at_the_positions_taken_and_nowhere_else():
    one, criterion = build(block_loss="mean", block_positions=0.4)
    taken = criterion.trained_positions(one, batch())
    ask, heads = dict(batch()["net_input"], target=TARGET), dict.fromkeys((1, 2, 3, 4), 1.0)
    whole, part, rest = (one(**ask, objective=HeadObjective(heads, 0.1, which)) for which in (None, taken, ~taken))
    torch.testing.assert_close(total(part) + total(rest), total(whole))
    for name in ("h1", "h2", "h3", "h4"):
        for field in ("loss", "nll", "count", "correct"):
            torch.testing.assert_close(
                getattr(part[name], field) + getattr(rest[name], field), getattr(whole[name], field)
            )
    loss, count, logs = criterion(one, batch())
    torch.testing.assert_close(loss, total(part))
    assert count == sum(sums.count for sums in part.values()) == sum(logs[f"{name}_count"] for name in part)


def test_weights_fall_with_the_distance():
    one, criterion = build(block_loss="weighted")
    assert criterion.weights(one, batch()) == {1: 1.0, 2: 0.8, 3: pytest.approx(0.64), 4: pytest.approx(0.512)}
    frozen, _ = build("--freeze-base")
    assert list(criterion.weights(frozen, batch())) == [2, 3, 4]


@pytest.mark.parametrize("form", ["sample", "mean", "weighted"])
def test_validation_asks_all_heads_and_is_deterministic(form):
    one, criterion = build("--freeze-base", "--dropout", "0.3", block_loss=form)
    one.eval()
    (a, count, logs), (b, _, _) = criterion(one, batch(1)), criterion(one, batch(2))
    assert a == b and all(logs[f"h{head}_count"] > 0 for head in (1, 2, 3, 4))
    assert count == sum(int(TARGET[:, head - 1 :].ne(1).sum()) for head in (2, 3, 4))  # head 1 has nothing to learn
    with metrics.aggregate() as meters:
        BlockwiseLoss.reduce_metrics([logs, logs])
    values = meters.get_smoothed_values()
    assert values["loss"] == pytest.approx(float(a / count) / math.log(2), abs=1e-3)
    assert all(f"nll_h{head}" in values and 0 <= values[f"acc_h{head}"] <= 100 for head in (1, 2, 3, 4))


def test_sequential_heads_are_not_drawn_alone():
    one, criterion = build("--block-head", "sequential")
    with pytest.raises(ValueError, match="--block-loss sample draws one head.*use weighted"):
        criterion(one, batch())


def test_other_models_and_tasks_are_refused():
    one, criterion = build()
    without = {key: value for key, value in batch().items() if key != "update"}
    for wrong in (criterion, build(block_loss="mean", block_positions=0.5)[1]):
        with pytest.raises(ValueError, match="need --task nar_translation"):
            wrong(one, without)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=f"--block-positions {share}"):
            build(block_positions=share)
    with pytest.raises(ValueError, match="trains --arch blockwise"):
        criterion(model(arch="transformer_tiny", criterion="cross_entropy")[0], batch())
    with pytest.raises(ValueError, match="--label-smoothing 1"):
        build(label_smoothing=1)
