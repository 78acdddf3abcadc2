"""The model ``dag``: its canvas, its loss against the parts that it is made of, glancing and forced emission."""

import math

import pytest
import torch
from conftest import source_batch
from tiny import arguments, configuration, model

from nar_plugins.criterions.nar_loss import NarLoss
from nar_plugins.models.contract import Plan
from nar_plugins.models.dag import model as dag_model
from nar_plugins.models.dag import paths
from nar_plugins.models.dag.fuzzy import overlap
from nar_plugins.modules.layers import NarDecoderLayer
from nar_plugins.modules.losses import TokenObjective
from nar_plugins.modules.teacher_forcing import Teacher

BOS, PAD, EOS, MASK = 0, 1, 2, 24
SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 1, 1, 1], [4, 4, 10, 2, 1]])
TARGET = torch.tensor([[11, 12, 13, 2, 1, 1], [14, 14, 14, 14, 14, 2], [2, 1, 1, 1, 1, 1]])
GLANCING = ("--upsample", "4", "--glancing", "0.5")


def dag(*flags, **kwargs):
    return model("--share-all-embeddings", *flags, arch=kwargs.pop("arch", "dag_tiny"), **kwargs)[0]


def batch(rows=(0, 1, 2), **extra):
    rows = list(rows)
    return dict(src_tokens=SOURCE[rows], src_lengths=SOURCE[rows].ne(PAD).sum(1), target=TARGET[rows], **extra)


def graph_of(m, canvas=None):
    memory = m.encode(SOURCE)
    canvas = m.canvas(memory, Plan(torch.arange(3))) if canvas is None else canvas
    return canvas, *m.graph(m.decode(canvas, memory), canvas, TARGET)


@pytest.mark.parametrize(
    "arch, wanted",
    [
        ("dag", (512, 2048, 8, 6, 0.1)),
        ("dag_wmt_en_de", (512, 2048, 8, 6, 0.1)),
        ("dag_iwslt_de_en", (512, 1024, 4, 6, 0.3)),
        ("dag_tiny", (64, 128, 4, 2, 0.0)),
    ],
)
def test_a_preset_has_its_sizes_and_its_parts(arch, wanted):
    args = arguments(arch=arch)
    for side in ("encoder", "decoder"):
        got = [getattr(args, f"{side}_{what}") for what in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers")]
        assert (*got, args.dropout) == wanted
    release = arch != "dag"
    assert (bool(args.decoder_learned_pos), args.activation_fn == "gelu") == (release, release)
    assert (args.upsample, args.max_transition_length, args.force_emit, args.length_head) == (8.0, 0, False, "none")


def test_the_canvas_is_so_many_times_as_long_as_the_source():
    for factor, lengths in (("2", [10, 4, 8]), ("2.5", [12, 5, 10]), ("8", [40, 16, 32])):
        m = dag("--upsample", factor)
        canvas = m.canvas(m.encode(SOURCE), Plan(torch.arange(3)))
        assert canvas.lengths().tolist() == lengths
        for row, n in zip(canvas.inputs.tolist(), lengths):
            assert row == [BOS, *[MASK] * (n - 2), EOS, *[PAD] * (lengths[0] - n)]


def test_the_first_self_attention_is_computed_once_for_canvases_of_one_length(monkeypatch):
    """Not in training, where dropout tells them apart, and not for canvases whose tokens differ."""
    m = dag("--upsample", "4").double().eval()
    memory = m.encode(SOURCE[[0, 1, 0, 2, 1]])
    canvas = m.canvas(memory, Plan(torch.arange(5)))
    attend, seen = NarDecoderLayer.attend_canvas, []
    record = lambda layer, x, *more: seen.append(x.size(0)) or attend(layer, x, *more)  # noqa: E731
    monkeypatch.setattr(NarDecoderLayer, "attend_canvas", record)
    found, wanted = m.decode(canvas, memory), super(type(m.decoder), m.decoder).forward(canvas, memory)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert seen == [3, 5, 5, 5]
    canvas.inputs[2, 3] = 9
    found, wanted = m.decode(canvas, memory), super(type(m.decoder), m.decoder).forward(canvas, memory)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert seen[4:6] == [4, 5] and not found[0].allclose(found[2])
    m.train().decode(canvas, memory)
    assert seen[-2:] == [5, 5]


def test_a_mask_is_embedded_as_the_sources_token_at_its_place():
    m = dag("--upsample", "2.5", "--source-copy", "uniform").eval()
    memory = m.encode(SOURCE)
    canvas = m.canvas(memory, Plan(torch.arange(3)))  # 12, 5 and 10 vertices for 5, 2 and 4 tokens
    canvas.inputs[0, 4] = 17  # revealed
    words, (read,) = m.decoder.embed_words, capture(m.decoder, "through_layers", lambda: m.decode(canvas, memory))
    expected = torch.where(canvas.inputs.eq(MASK), PAD, canvas.inputs)
    for row, places in enumerate(
        ([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    ):
        copied = canvas.inputs[row, : len(places)].eq(MASK)
        expected[row, : len(places)][copied] = SOURCE[row, places][copied]
    padded = canvas.padding.unsqueeze(2)
    wanted = words(expected) + m.decoder.embed_positions(canvas.inputs)
    torch.testing.assert_close(read.masked_fill(padded, 0), wanted.masked_fill(padded, 0))
    for row, n in enumerate((5, 2, 4)):  # the batch and its padding change nothing
        alone = m.encode(SOURCE[row : row + 1, :n])
        one = m.canvas(alone, Plan(torch.arange(1)))
        torch.testing.assert_close(
            m.decode(one, alone)[0],
            m.decode(m.canvas(memory, Plan(torch.arange(3))), memory)[row, : one.inputs.size(1)],
        )


def capture(owner, name, call):
    """The first positional argument of every call of ``owner.name`` during ``call()``."""
    seen, method = [], getattr(owner, name)
    setattr(owner, name, lambda x, *more, **named: seen.append(x) or method(x, *more, **named))
    call()
    delattr(owner, name)
    return seen


def test_copies_are_learned_from_and_absent_by_default():
    m = dag("--upsample", "4", "--source-copy", "uniform", "--glancing", "0.5")
    m(**batch(reveal_draws=torch.rand(TARGET.shape)))["words"].loss.backward()
    assert m.encoder.embed_tokens.weight.grad[5].abs().sum() > 0
    assert arguments(arch="dag").source_copy == "none"
    with pytest.raises(ValueError, match="^--source-copy uniform puts the encoder's embeddings into the decoder: "):
        model("--source-copy", "uniform", "--encoder-embed-dim", "32", arch="dag_tiny")


def test_the_positions_limit_the_source():
    assert dag("--upsample", "2.5", "--max-target-positions", "24").max_positions() == (9, 24)
    assert dag("--max-source-positions", "5").max_positions() == (5, 1024)


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_the_sentences_of_bits_per_token():
    m = dag("--upsample", "4").double()
    part = m(**batch())["words"]
    canvas, emissions, links = graph_of(m)
    lprobs = paths.log_marginal(emissions, links, torch.tensor([4, 6, 1]), canvas.lengths() - 1)
    torch.testing.assert_close(part.loss, -(lprobs / torch.tensor([4, 6, 1])).sum())
    assert (int(part.count), int(part.skipped), part.weight) == (3, 0, 1) and part.nll == part.loss.detach()
    for row in range(3):  # padding changes nothing
        n, t = int(SOURCE[row].ne(PAD).sum()), int(TARGET[row].ne(PAD).sum())
        alone = m(SOURCE[row : row + 1, :n], torch.tensor([n]), TARGET[row : row + 1, :t])["words"].loss
        torch.testing.assert_close(alone, -lprobs[row] / t, rtol=1e-9, atol=1e-9)


def test_a_target_longer_than_the_graph_is_skipped_counted_and_never_nan():
    m = dag("--upsample", "2")  # the second graph has 4 vertices for 6 tokens
    parts = m(**batch())
    assert (int(parts["words"].count), int(parts["words"].skipped)) == (2, 1)
    torch.testing.assert_close(parts["words"].loss, m(**batch([0, 2]))["words"].loss)
    parts["words"].loss.backward()
    grads = [p.grad.clone() for p in m.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)
    m.zero_grad()
    m(**batch([0, 2]))["words"].loss.backward()
    for mine, wanted in zip(grads, (p.grad for p in m.parameters() if p.grad is not None)):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
    alone = m(**batch([1]))["words"]
    assert (float(alone.loss), int(alone.count), int(alone.skipped)) == (0.0, 0, 1)


def test_a_source_of_one_token_has_a_graph():
    """``</s>`` alone, with the smallest graph: two vertices, one output."""
    m = dag("--upsample", "2")
    part = m(torch.tensor([[EOS], [EOS]]), torch.tensor([1, 1]), torch.tensor([[EOS, PAD], [7, EOS]]))["words"]
    assert (int(part.count), int(part.skipped)) == (1, 1) and bool(part.loss.isfinite())


def test_a_window_bounds_the_links_and_the_paths():
    m = dag("--upsample", "4", "--max-transition-length", "4")
    _, _, links = graph_of(m)
    places = torch.arange(links.size(1))
    assert (links > -math.inf)[0].equal(((places - places.unsqueeze(1)) > 0) & ((places - places.unsqueeze(1)) <= 4))
    part = m(**batch())["words"]  # 19 vertices in 4 steps, 7 in 6, 15 in 1: none, one, none
    assert (int(part.count), int(part.skipped)) == (1, 2) and bool(part.loss.isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_about_the_loss_and_a_finite_gradient(dtype):
    m = dag(*GLANCING)
    full = m(**batch())["words"].loss
    with torch.autocast("cpu", dtype):
        part = m(**batch(reveal_draws=torch.rand(3, 6)))["words"]
        close = m.eval()(**batch())["words"].loss
    assert part.loss.dtype == torch.float32 and float(close) == pytest.approx(float(full), rel=0.05)
    part.loss.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)


# -- glancing ----------------------------------------------------------------------------------------------------------


def revealed_of(m, draws, ratio):
    """What glancing shows of the batch."""
    m.glancing = dag_model.glancing.Schedule.parse(str(ratio))
    memory = m.encode(SOURCE)
    canvas = m.canvas(memory, Plan(torch.arange(3)))
    return canvas, m.reveal(canvas, memory, TARGET, draws, torch.tensor([True, True, True]))


def test_so_many_of_the_wrong_tokens_of_the_best_path_are_revealed():
    m, draws = dag(*GLANCING), torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    canvas, emissions, links = graph_of(m)
    best = paths.trace(
        paths.best_scores(emissions, links), links, torch.tensor([4, 6, 1]), canvas.lengths() - 1, torch.arange(3)
    )
    memory = m.encode(SOURCE)
    argmax = m.project(m.decode(canvas, memory)).argmax(-1).gather(1, best)
    right = [sum(argmax[b, t] == TARGET[b, t] for t in range(n)) for b, n in enumerate((4, 6, 1))]
    for ratio in (0.0, 0.5, 1.0):
        _, revealed = revealed_of(m, draws, ratio)
        assert revealed.vertices.equal(best)
        wanted = [math.floor((n - int(r)) * ratio + 0.5) for n, r in zip((4, 6, 1), right)]
        assert revealed.tokens.sum(1).tolist() == wanted
        assert not (revealed.tokens & TARGET.eq(PAD)).any()
        for b, n in enumerate((4, 6, 1)):  # those of the smallest draws
            chosen = draws[b, :n].argsort()[: wanted[b]].tolist()
            assert sorted(chosen) == revealed.tokens[b].nonzero().squeeze(1).tolist()


def test_revealed_tokens_stand_on_their_vertices_and_nothing_else_changes():
    m = dag(*GLANCING)
    canvas, revealed = revealed_of(m, torch.rand(3, 6, generator=torch.Generator().manual_seed(2)), 0.6)
    shown = dag_model.with_revealed(canvas, revealed, TARGET).inputs
    assert revealed.tokens.any()
    wanted = canvas.inputs.clone()
    for b, t in revealed.tokens.nonzero().tolist():
        wanted[b, revealed.vertices[b, t]] = TARGET[b, t]
    assert shown.equal(wanted)


def test_both_passes_have_the_same_dropout_and_the_second_alone_a_gradient(monkeypatch):
    m = dag(*GLANCING, "--dropout", "0.3")
    seen, decode = [], m.decode
    m.decode = lambda canvas, memory: seen.append((torch.is_grad_enabled(), decode(canvas, memory))) or seen[-1][1]
    m.glancing = dag_model.glancing.Schedule.parse("0")  # nothing is revealed: the passes are the same
    torch.manual_seed(5)
    m(**batch(reveal_draws=torch.rand(3, 6)))
    assert [grad for grad, _ in seen] == [False, True]
    torch.testing.assert_close(seen[0][1], seen[1][1])


def test_what_is_revealed_does_not_depend_on_the_batch():
    m, draws = dag(*GLANCING), torch.rand(3, 6, generator=torch.Generator().manual_seed(3))
    _, together = revealed_of(m, draws, 0.5)
    for b in range(3):
        n, t = int(SOURCE[b].ne(PAD).sum()), int(TARGET[b].ne(PAD).sum())
        memory = m.encode(SOURCE[b : b + 1, :n])
        canvas = m.canvas(memory, Plan(torch.tensor([0])))
        alone = m.reveal(canvas, memory, TARGET[b : b + 1, :t], draws[b : b + 1], torch.tensor([True]))
        assert alone.tokens[0].equal(together.tokens[b, :t]) and alone.vertices[0].equal(together.vertices[b, :t])


def test_validation_glances_at_nothing():
    m = dag(*GLANCING).eval()
    torch.testing.assert_close(
        m(**batch(reveal_draws=torch.rand(3, 6)))["words"].loss, dag("--upsample", "4")(**batch())["words"].loss
    )


def test_forced_tokens_pin_the_path_and_cost_nothing():
    """With all tokens revealed, only the links of the path count; with none, nothing is forced."""
    m = dag(*GLANCING)
    _, revealed = revealed_of(m, torch.rand(3, 6), 0.5)
    canvas, emissions, links = graph_of(m)
    steps, last, real = torch.tensor([4, 6, 1]), canvas.lengths() - 1, TARGET.ne(PAD)
    lprobs = paths.log_marginal(dag_model.forced(emissions, revealed._replace(tokens=real)), links, steps, last)
    for b in range(3):
        path = revealed.vertices[b, : int(steps[b])].tolist()
        assert float(lprobs[b]) == pytest.approx(
            sum(float(links[b, u, v]) for u, v in zip([0, *path[:-1]], path)), 1e-4
        )
    none = dag_model.forced(emissions, revealed._replace(tokens=real & False))
    assert none.equal(emissions)


def test_forcing_is_a_flag_and_on_with_glancing():
    draws = torch.rand(3, 6, generator=torch.Generator().manual_seed(4))
    losses = [
        float(dag(*GLANCING, *flag)(**batch(reveal_draws=draws))["words"].loss)
        for flag in ((), ("--force-emit",), ("--no-force-emit",))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_draws_are_those_of_the_seed_the_update_and_the_sentence():
    m = dag(*GLANCING)
    sample = {"id": torch.tensor([7, 3, 9]), "target": TARGET, "net_input": {"src_tokens": SOURCE}}
    draws = m.noise(sample, 1, 5)["reveal_draws"]
    assert draws.shape == TARGET.shape
    other = {"id": torch.tensor([3]), "target": TARGET[1:2], "net_input": {}}
    assert m.noise(other, 1, 5)["reveal_draws"][0].equal(draws[1])
    assert not m.noise(sample, 1, 6)["reveal_draws"].equal(draws)
    assert dag().noise(sample, 1, 5) == {}


def test_the_ratio_follows_the_updates():
    m = dag("--glancing", "0.5:0.1@200k")
    m.set_num_updates(100_000)
    assert m.glancing.at(m.num_updates) == pytest.approx(0.3)


# -- fuzzy alignment ---------------------------------------------------------------------------------------------------


def test_fuzzy_alignment_is_the_loss_of_training_and_validation_has_the_likelihood():
    m = dag("--upsample", "4", "--fuzzy-ngram", "2", "--glancing", "0.1")
    parts = m(**batch())
    _, emissions, links = graph_of(m)
    wanted = 1 - overlap(emissions, links, TARGET.ne(PAD), TARGET, 2)[:2]  # the third has no two tokens
    torch.testing.assert_close(parts["fuzzy"].loss, wanted.sum())
    assert (int(parts["fuzzy"].count), int(parts["fuzzy"].skipped)) == (2, 1)
    parts["fuzzy"].loss.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)
    torch.testing.assert_close(
        m.eval()(**batch())["words"].loss, dag("--upsample", "4").eval()(**batch())["words"].loss
    )
    short = m.train()(SOURCE[2:], torch.tensor([4]), TARGET[2:, :1])["fuzzy"]
    assert (float(short.loss), int(short.count), int(short.skipped)) == (0.0, 0, 1)


def test_fuzzy_alignment_is_trained_by_gradient_descent():
    m = dag("--upsample", "3", "--fuzzy-ngram", "2")
    optimizer = torch.optim.Adam(m.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = m(**batch([0, 1]))["fuzzy"].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--upsample", "1"), "--upsample 1: a graph has more vertices than the target tokens: give 2 or more"),
        (("--max-transition-length", "5"), "--max-transition-length 5: no path of as many tokens as the source would"),
        (("--max-transition-length", "-1"), "--max-transition-length -1: no path"),
        (("--length-head", "pooled"), "--length-head pooled: this model predicts no length; leave it out"),
        (("--stop-length-gradient",), "--stop-length-gradient: this model predicts no length; leave it out"),
        (("--fuzzy-ngram", "-1"), "--fuzzy-ngram -1: choose a number from 0 up"),
        (("--force-emit",), "--force-emit is for the tokens that --glancing reveals: leave it out"),
        (("--force-emit", "--glancing", "0.1", "--fuzzy-ngram", "2"), "--force-emit: --fuzzy-ngram forces no token"),
        (("--glancing", "half"), "--glancing 'half' is no schedule: write a ratio"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message):
    with pytest.raises(ValueError) as error:
        dag(*flags)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_smoothing_and_a_teacher_are_refused():
    m = dag()
    with pytest.raises(ValueError, match="^--label-smoothing has no meaning with --arch dag: leave it out$"):
        m(**batch(), objective=TokenObjective(label_smoothing=0.1))
    teacher = Teacher(None, SOURCE, MASK)
    with pytest.raises(ValueError, match="^--teacher: word-level distillation needs a target at every position, and"):
        m(**batch(), objective=TokenObjective(teacher=teacher))


def test_the_criterion_counts_sentences():
    m, task = model("--share-all-embeddings", "--upsample", "2", arch="dag_tiny")
    criterion = NarLoss.build_criterion(configuration(arch="dag_tiny").criterion, task)
    sample = {
        "net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)},
        "target": TARGET,
        "ntokens": 11,
    }
    loss, size, logs = criterion(m, sample)
    assert int(size) == 2 and int(logs["skipped"]) == 1 and float(logs["nll_loss"]) == pytest.approx(float(loss))
    with pytest.raises(ValueError, match="^--length-loss-factor: this model predicts no length; leave it out$"):
        criterion.part_factors["length"] = 0.5
        criterion(m, sample)


def test_links_of_padded_graphs_are_those_of_each_alone():
    m = dag("--upsample", "3").double().eval()
    source = source_batch([5, 9, 2], 20)
    memory = m.encode(source)
    canvas = m.canvas(memory, Plan(torch.arange(3)))
    links = m.links(m.decode(canvas, memory), canvas)
    for row, length in enumerate((5, 9, 2)):
        memory = m.encode(source[row : row + 1, :length])
        alone = m.canvas(memory, Plan(torch.tensor([0])))
        n = 3 * length
        found = m.links(m.decode(alone, memory), alone)[0]
        torch.testing.assert_close(links[row, :n, :n], found, rtol=1e-9, atol=1e-9)
        assert links[row, :, n:].eq(-math.inf).all() and links[row, n - 1 :].eq(-math.inf).all()
