"""The loss: exact values, normalisation over the global batch, and a perplexity of the words alone."""

import math
from argparse import Namespace

import pytest
import torch
from fairseq import metrics
from tiny import model

from nar_plugins.criterions.nar_loss import NarLoss
from nar_plugins.models.contract import Canvas
from nar_plugins.modules.losses import length_loss

LOG_HALF = math.log(0.5)


def log_softmax(row):
    """In float64 and plain Python."""
    top = max(row)
    normaliser = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - normaliser for x in row]


def sample(source, target, seed=0):
    """fairseq's batch, with about half of the target's tokens masked (24 is <mask> in tiny's dictionaries)."""
    source, target = torch.tensor(source), torch.tensor(target)
    torch.manual_seed(seed)
    masked = (torch.rand(target.shape) < 0.5) & target.ne(1)
    masked[:, 0] = True
    return {
        "target": target,
        "ntokens": int(target.ne(1).sum()),
        "id": torch.arange(len(target)),
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(1).sum(1),
            "prev_output_tokens": target.masked_fill(masked, 24),
        },
    }


A = sample([[5, 6, 7, 2]], [[8, 9, 2]])
B = sample([[9, 2, 1, 1, 1], [4, 5, 6, 7, 2]], [[11, 12, 13, 14, 15, 2], [10, 2, 1, 1, 1, 1]], seed=1)


def joined(one, two):
    """The two batches in one, padded to the longer's widths."""

    def rows(x, y):
        width = max(x.size(1), y.size(1))
        return torch.cat([torch.nn.functional.pad(z, (0, width - z.size(1)), value=1) for z in (x, y)])

    nets = [s["net_input"] for s in (one, two)]
    return {
        "target": rows(one["target"], two["target"]),
        "ntokens": one["ntokens"] + two["ntokens"],
        "net_input": {
            "src_tokens": rows(*(n["src_tokens"] for n in nets)),
            "src_lengths": torch.cat([n["src_lengths"] for n in nets]),
            "prev_output_tokens": rows(*(n["prev_output_tokens"] for n in nets)),
        },
    }


def reduced(*logs):
    """What fairseq would print."""
    with metrics.aggregate(new_root=True) as aggregator:
        NarLoss.reduce_metrics(list(logs))
    return aggregator.get_smoothed_values()


def test_the_length_loss_is_the_log_likelihood_of_the_lengths():
    lprobs = torch.tensor([[-float("inf"), 0.25, 0.5, 0.25], [-float("inf"), 0.5, 0.25, 0.25]])
    lprobs[:, 1:] = lprobs[:, 1:].log()
    part = length_loss(lprobs, torch.tensor([2, 3]))
    assert float(part.loss) == pytest.approx(-LOG_HALF - 2 * LOG_HALF, rel=1e-6)  # 1/2 and 1/4
    assert (float(part.nll), int(part.count)) == (float(part.loss), 2)


@pytest.mark.parametrize("smoothing, factor", [(0.0, 1.0), (0.1, 0.25)])
def test_the_criterion_sums_words_and_lengths_as_worked_out_from_the_models_logits(smoothing, factor):
    cmlm, task = model()
    loss, size, logs = NarLoss(task, smoothing, {"length": factor})(cmlm, B)
    with torch.no_grad():
        memory = cmlm.encode(B["net_input"]["src_tokens"], B["net_input"]["src_lengths"])
        canvas = B["net_input"]["prev_output_tokens"]
        logits = cmlm.project(cmlm.decode(Canvas(canvas, B["target"].eq(1)), memory)).double()
        lengths = cmlm.length_lprobs(memory).double()
    words = nll = 0.0
    predicted = canvas.eq(24).nonzero().tolist()
    for row, column in predicted:
        lprobs = log_softmax(logits[row, column].tolist())
        nll -= lprobs[B["target"][row, column]]
        words -= (1 - smoothing) * lprobs[B["target"][row, column]] + smoothing * sum(lprobs) / 25
    length = -float(lengths[0, 6] + lengths[1, 2])  # 6 and 2 tokens, </s> included
    assert float(loss) == pytest.approx(words + factor * length, rel=1e-5)
    assert int(size) == len(predicted) and 2 <= len(predicted) < 8
    assert float(logs["words_loss"]) == pytest.approx(words, rel=1e-5)
    assert float(logs["words_nll"]) == pytest.approx(nll, rel=1e-5)
    assert float(logs["length_loss"]) == pytest.approx(length, rel=1e-5)
    assert (int(logs["words_count"]), int(logs["length_count"]), logs["nsentences"]) == (len(predicted), 2, 2)


def test_two_micro_batches_weigh_like_one_batch():
    cmlm, task = model()
    criterion = NarLoss(task, 0.1)

    def gradient(*batches):
        cmlm.zero_grad()
        total = 0
        for batch in batches:
            loss, size, _ = criterion(cmlm, batch)
            loss.backward()
            total += int(size)
        return total, torch.cat([p.grad.flatten() / total for p in cmlm.parameters() if p.grad is not None])

    (parts, in_two), (whole, in_one) = gradient(A, B), gradient(joined(A, B))
    assert parts == whole
    assert in_one.abs().max() > 0.01
    torch.testing.assert_close(in_two, in_one, rtol=1e-4, atol=1e-6)


def test_the_logs_of_two_workers_give_the_means_of_one_batch():
    cmlm, task = model()
    criterion = NarLoss(task, 0.1)
    apart = reduced(criterion(cmlm, A)[2], criterion(cmlm, B)[2])
    together = reduced(criterion(cmlm, joined(A, B))[2])
    assert apart.keys() == together.keys() >= {"loss", "nll_loss", "words", "length", "ppl"}
    for name in apart:
        assert float(apart[name]) == pytest.approx(float(together[name]), abs=2e-3), name
    assert NarLoss.logging_outputs_can_be_summed()


def logs(words=3.0, length=50.0, count=4, sentences=2):
    """Numbers easy to check: in nats, loss with label smoothing 1 above the likelihood."""
    return {
        "loss": words + 1 + length,
        "nll_loss": words,
        "sample_size": count,
        "ntokens": 9,
        "nsentences": sentences,
        "words_loss": words + 1,
        "words_nll": words,
        "words_count": count,
        "length_loss": length,
        "length_nll": length,
        "length_count": sentences,
    }


def test_the_parts_are_logged_apart_each_by_its_own_count_in_bits():
    got = reduced(logs(), logs(words=5.0, length=10.0, count=12, sentences=8))
    bits = math.log(2)
    assert got["loss"] == pytest.approx((4 + 50 + 6 + 10) / 16 / bits, abs=1e-3)
    assert got["words"] == pytest.approx((4 + 6) / 16 / bits, abs=1e-3)
    assert got["nll_loss"] == pytest.approx((3 + 5) / 16 / bits, abs=1e-3)
    assert got["length"] == pytest.approx((50 + 10) / 10 / bits, abs=1e-3)


def test_perplexity_is_of_the_words_without_smoothing_and_without_the_length():
    # 8 nats in 16 words: exp(1/2) = 1.6487
    for length in (0.0, 50.0, 5000.0):
        got = reduced(logs(words=3.0, length=length), logs(words=5.0, length=length, count=12))
        assert got["ppl"] == pytest.approx(1.65, abs=0.01)


def test_a_batch_without_predictions_logs_no_mean():
    assert "loss" not in reduced(logs(words=0.0, length=0.0, count=0, sentences=0))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0])
def test_impossible_label_smoothing_is_refused(smoothing):
    with pytest.raises(ValueError, match="--label-smoothing"):
        NarLoss(Namespace(), smoothing)


def test_a_model_without_these_losses_is_refused():
    with pytest.raises(ValueError, match="--criterion nar_loss trains this package's models"):
        NarLoss(Namespace())(torch.nn.Linear(1, 1), A)
