"""The criterion ``bang_loss``: every mask by brute force, what is sampled is unbiased, nothing depends on the batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from bang_twin import PAD, SOURCE, inputs, random_bang, row
from fairseq import metrics
from test_bang import encoded, of_sentence
from tiny import model

from nar_plugins.criterions.bang_loss import BangLoss

LENGTHS = [7, 3, 5]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SPANS = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0], [0, 1, 0, 1, 2, 0, 0]])


def batch(update=3, spans=None, lengths=LENGTHS):
    target, before = inputs(lengths)
    sample = {
        "target": target,
        "ntokens": int(target.ne(PAD).sum()),
        "id": torch.arange(11, 11 + len(target)),
        "update": update,
        "net_input": {
            "src_tokens": SOURCE[: len(target)],
            "src_lengths": SOURCE[: len(target)].ne(PAD).sum(1),
            "prev_output_tokens": before,
        },
    }
    if spans is not None:
        sample["net_input"]["target_idx"] = spans
    return sample


def build(*flags, training=True, **settings):
    one, task = random_bang.__wrapped__(*flags)
    return one.train(training), BangLoss(task, **settings)


def mask_by_mask(one, sample, smoothing=0.0, streams=0):
    """(sentence, start, offset, sees_no_bos) -> (loss, nll), each mask from a run of its row by itself."""
    target, before = sample["target"], sample["net_input"]["prev_output_tokens"]
    spans = sample["net_input"].get("target_idx")
    found = {}
    with torch.no_grad():
        out = encoded(one, sample["net_input"]["src_tokens"])
        for b, words in enumerate(target):
            length = int(words.ne(PAD).sum())
            for s in range(length):
                count = 1
                while s + count < length and (spans is None or spans[b, s + count] > 0) and count != streams:
                    count += 1
                for sees_no_bos in {False, s == 0 and not one.decoder.nar_sees_bos}:
                    features = row(one, of_sentence(out, b), before[b : b + 1, : s + 1], count, sees_no_bos)[0]
                    lprobs = one.decoder.output_layer(features).log_softmax(-1)
                    for j in range(1 if s == 0 and not one.decoder.nar_sees_bos and not sees_no_bos else count):
                        nll = -lprobs[j, words[s + j]]
                        loss = (1 - smoothing) * nll - smoothing * lprobs[j].mean()
                        found[b, s, j, sees_no_bos] = (float(loss), float(nll))
    return found


def class_of(key, one, spans):
    b, s, j, sees_no_bos = key
    start = s == 0 if spans is None else bool(spans[b, s] == 0)
    ar, nar = j == 0 and not sees_no_bos, start and (one.decoder.nar_sees_bos or s > 0 or sees_no_bos)
    return "both" if ar and nar else "ar" if ar else "nar" if nar else "bridge"


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",), ("--ngram", "3")])
@pytest.mark.parametrize("weights", [(1, 1, 1), (0, 0, 1), (1, 0, 0), (0, 1, 0), (2, 0.5, 1), (1, 0, 3)])
@pytest.mark.parametrize("spans", [None, SPANS])
def test_it_is_the_sum_over_masks(flags, weights, spans):
    one, criterion = build(
        *flags, label_smoothing=0.1, **dict(zip(("ar_weight", "bridge_weight", "nar_weight"), weights))
    )
    sample = batch(spans=spans)
    loss, size, logs = criterion(one, sample)
    weight = dict(zip(("ar", "bridge", "nar"), weights), both=max(weights[0], weights[2]))
    masks = {
        key: (class_of(key, one, spans), *value)
        for key, value in mask_by_mask(one, sample, 0.1, one.args.ngram).items()
    }
    assert float(loss) == pytest.approx(sum(weight[kind] * loss for kind, loss, _ in masks.values()), abs=1e-8)
    assert float(logs["nll_loss"]) == pytest.approx(
        sum(weight[kind] * nll for kind, _, nll in masks.values()), abs=1e-8
    )
    assert float(size) == pytest.approx(sum(weight[kind] for kind, _, _ in masks.values()))
    for name in ("ar", "bridge", "nar"):
        its = [nll for kind, _, nll in masks.values() if kind == name or (kind == "both" and name != "bridge")]
        asked = weight[name] > 0
        assert float(logs[f"{name}_count"]) == asked * len(its)
        assert float(logs[f"{name}_nll"]) == pytest.approx(asked * sum(its), abs=1e-8)
    one.eval()  # validation reports every class, with the same loss
    valid, valid_size, logs = criterion(one, sample)
    torch.testing.assert_close(valid, loss, **EXACT)
    assert float(valid_size) == float(size) and all(logs[f"{name}_count"] > 0 for name in ("ar", "bridge", "nar"))


def test_equal_weights_are_the_releases_loss():
    """Label smoothing over all V, every mask alike, divided by their number; 45 masks for a span of 9."""
    one, criterion = build(label_smoothing=0.1)
    loss, size, _ = criterion(one, batch(lengths=[9, 9, 9]))
    assert float(size) == 3 * 45 and criterion.class_weights() == {"ar": 1, "bridge": 1, "nar": 1}
    assert BangLoss(criterion.task).label_smoothing == 0


def test_autoregressive_weights_are_the_plain_loss():
    one, criterion = build(label_smoothing=0.1, bridge_weight=0, nar_weight=0)
    sample = batch()
    loss, size, _ = criterion(one, sample)
    real = sample["target"].ne(PAD)
    logits = one(**sample["net_input"])[0][real]
    plain = F.cross_entropy(logits, sample["target"][real], label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss, plain, **EXACT)
    assert float(size) == sum(LENGTHS)
    for a, b in zip(torch.autograd.grad(loss, [*one.parameters()]), torch.autograd.grad(plain, [*one.parameters()])):
        torch.testing.assert_close(a, b, **EXACT)


# -- sampled rows
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spans", [None, SPANS])
def test_as_many_rows_as_there_are_is_all_of_them(spans):
    one, every = build()
    sample = batch(spans=spans)
    expected = every(one, sample)
    some = BangLoss(every.task, bang_rows="sample:7")(one, sample)
    torch.testing.assert_close(some[0], expected[0], **EXACT)
    assert some[1] == expected[1] and some[2]["bridge_count"] == expected[2]["bridge_count"]


def test_sampled_rows_have_the_same_expectation():
    """One row of a sentence: the mean over draws that are all equally likely is the loss of all rows, and its
    gradient.
    """
    one, every = build()
    expected = every(one, batch())
    criterion = BangLoss(every.task, bang_rows="sample:1")
    seen = {}
    for update in range(60):
        full = one.mask_counts(batch()["target"].ne(PAD))
        starts = torch.zeros_like(full, dtype=torch.bool)
        starts[:, 0] = True
        share = criterion.mask_objective(batch(update), full, starts, True)
        rows = share.counts.clone()
        rows[:, 0] = 0
        assert rows.gt(0).sum(1).tolist() == [1, 1, 1] and share.bridge_scale.tolist() == [
            5,
            1,
            3,
        ]  # rows with bridge masks
        for b in range(3):
            seen.setdefault((b, int(rows[b].argmax())), update)
    assert sorted(seen) == [(0, s) for s in range(1, 6)] + [(1, 1)] + [(2, s) for s in range(1, 4)]
    draws = [criterion(one, batch(update)) for update in range(60)]
    assert {float(size) for _, size, _ in draws} == {float(expected[1])}
    # sentence by sentence each row's contribution, so that the expectation is exact
    total = 0.0
    for b, length in enumerate(LENGTHS):
        single = {key: value[b : b + 1] for key, value in batch()["net_input"].items()}
        alone = {
            "target": batch()["target"][b : b + 1],
            "ntokens": length,
            "id": torch.tensor([11 + b]),
            "net_input": single,
        }
        updates = [seen[b, s] for s in range(1, length - 1)]
        parts = [criterion(one, {**alone, "update": update}) for update in updates]
        total += sum(part[0] for part in parts) / len(parts)
        torch.testing.assert_close(
            sum(p[2]["bridge_nll"] for p in parts) / len(parts),
            every(one, {**alone, "update": 0})[2]["bridge_nll"],
            **EXACT,
        )
    torch.testing.assert_close(total, expected[0], **EXACT)
    (a,) = torch.autograd.grad(total, one.decoder.ngram_input_embed.weight)
    (b,) = torch.autograd.grad(expected[0], one.decoder.ngram_input_embed.weight)
    torch.testing.assert_close(a, b, **EXACT)


def test_rows_are_a_function_of_seed_update_and_sentence():
    one, task = random_bang()
    criterion = BangLoss(task, bang_rows="sample:1")
    target = inputs([30, 30])[0]
    full = one.mask_counts(target.ne(PAD))
    starts = torch.zeros_like(full, dtype=torch.bool)
    starts[:, 0] = True

    def rows(update, ids, order):
        sample = {"update": update, "id": torch.tensor(ids)}
        return criterion.mask_objective(sample, full[order], starts[order], True).counts

    first = rows(5, [8, 9], [0, 1])
    torch.manual_seed(99)
    assert first.equal(rows(5, [9, 8], [1, 0]).flip(0)) and first[1:].equal(rows(5, [9], [1]))
    assert not first.equal(rows(6, [8, 9], [0, 1])) and not first.equal(rows(5, [7, 6], [0, 1]))


# -- the official mixture
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
def test_the_mixture_is_all_ar_or_all_nar(flags):
    one, criterion = build(*flags, nar_ratio=0.3)
    ar = BangLoss(criterion.task, bridge_weight=0, nar_weight=0)(one, batch())
    nar = BangLoss(criterion.task, ar_weight=0, bridge_weight=0)(one, batch())
    found = {}
    for update in range(200):
        mode = criterion.mode_weights(update, "cpu", True)
        assert mode["ar"] + mode["nar"] == 1 and mode["bridge"] == 0
        found.setdefault(mode["nar"], []).append(update)
    assert 30 < len(found[1.0]) < 90
    torch.manual_seed(5)
    assert criterion.mode_weights(found[1.0][0], "cpu", True)["nar"] == 1
    for expected, name, updates in ((ar, "ar", found[0.0]), (nar, "nar", found[1.0])):
        loss, size, logs = criterion(one, batch(updates[0]))
        torch.testing.assert_close(loss, expected[0], **EXACT)
        assert size == expected[1] == sum(LENGTHS)
        assert [logs[f"{kind}_count"] > 0 for kind in ("ar", "bridge", "nar")] == [name == "ar", False, name == "nar"]
    one.eval()
    loss, size, logs = criterion(one, batch(1))
    torch.testing.assert_close(loss, 0.7 * ar[0] + 0.3 * nar[0], **EXACT)
    assert float(size) == pytest.approx(sum(LENGTHS))
    assert all(logs[f"{kind}_count"] > 0 for kind in ("ar", "bridge", "nar"))


@pytest.mark.parametrize("settings", [{}, {"bang_rows": "sample:1"}, {"nar_ratio": 0.5}])
def test_validation_is_deterministic_and_logs_every_class(settings):
    one, criterion = build("--dropout", "0.3", training=False, **settings)
    (loss, count, logs), again = criterion(one, batch(-1)), criterion(one, batch(-1))
    assert loss == again[0]
    with metrics.aggregate() as meters:
        BangLoss.reduce_metrics([logs, logs])
    values = meters.get_smoothed_values()
    assert values["loss"] == pytest.approx(float(loss / count) / math.log(2), abs=1e-3)
    for name in ("ar", "bridge", "nar"):
        expected = float(logs[f"{name}_nll"]) / float(logs[f"{name}_count"]) / math.log(2)
        assert values[name] == pytest.approx(expected, abs=1e-3)


def test_two_workers_make_one_batch():
    one, criterion = build(bang_rows="sample:1", label_smoothing=0.1)
    whole = criterion(one, batch())
    parts = []
    for chosen in ([0], [1, 2]):
        net_input = {key: value[chosen] for key, value in batch()["net_input"].items()}
        sample = {**batch(), "target": batch()["target"][chosen], "id": batch()["id"][chosen], "net_input": net_input}
        parts.append(criterion(one, sample))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0], **EXACT)
    assert parts[0][1] + parts[1][1] == whole[1]
    for key in (key for key in whole[2] if key.endswith(("_nll", "_count"))):
        torch.testing.assert_close(
            torch.as_tensor(parts[0][2][key] + parts[1][2][key]).double(),
            torch.as_tensor(whole[2][key]).double(),
            **EXACT,
        )


@pytest.mark.parametrize("settings", [{}, {"bang_rows": "sample:2"}, {"ar_weight": 0, "nar_weight": 0}])
def test_targets_of_one_token_and_none(settings):
    one, criterion = build(**settings)
    loss, size, _ = criterion(one, batch(lengths=[1, 1]))
    loss.backward()
    assert loss.isfinite() and float(size) == (0 if "ar_weight" in settings else 2)
    empty = batch(lengths=[2, 1])
    empty["target"] = torch.full_like(empty["target"], PAD)  # pre-training on samples too short to mask
    loss, size, _ = criterion(one, empty)
    loss.backward()
    assert float(loss.detach()) == float(size) == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"label_smoothing": 1}, "--label-smoothing 1"),
        ({"ar_weight": -1}, "--ar-weight -1: choose a number from 0 up"),
        ({"ar_weight": 0, "bridge_weight": 0, "nar_weight": 0}, "are all 0"),
        ({"bang_rows": "some"}, "--bang-rows some: give all, or sample:R"),
        ({"bang_rows": "sample:0"}, "--bang-rows sample:0"),
        ({"bang_rows": "sample:x"}, "--bang-rows sample:x"),
        ({"nar_ratio": 1.5}, "--nar-ratio 1.5: choose"),
        ({"nar_ratio": 0.5, "bang_rows": "sample:1"}, "--bang-rows sample:1: no bridge is trained"),
        ({"bridge_weight": 0, "bang_rows": "sample:1"}, "--bang-rows sample:1: no bridge is trained"),
        ({"nar_ratio": 0.5, "ar_weight": 2}, "--nar-ratio decides what counts"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BangLoss(random_bang()[1], **settings)


def test_other_models_and_tasks_are_refused():
    one, criterion = build(bang_rows="sample:1")
    without = {key: value for key, value in batch().items() if key != "update"}
    with pytest.raises(ValueError, match="need a task that knows the number of the update"):
        criterion(one, without)
    with pytest.raises(ValueError, match="trains --arch bang"):
        criterion(model(arch="transformer_tiny", criterion="cross_entropy")[0], batch())
