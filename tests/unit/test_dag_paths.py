"""The dynamic programs over a graph's paths against all paths, counted one by one."""

import itertools
import math

import pytest
import torch

from nar_plugins.models.dag import paths
from nar_plugins.models.dag.links import Links
from nar_plugins.models.dag.paths import best_scores, feasible, log_marginal, trace

NEVER = -math.inf


def random_graph(vertices: int, steps: int, generator, window: int = 0, scale: float = 2.0):
    """Emissions (T, L) of a vocabulary larger than the target, and normalised links (L, L), in float64."""
    emissions = (scale * torch.randn(4, vertices, generator=generator).double()).log_softmax(0)
    emissions = emissions[torch.randint(4, (steps,), generator=generator)]
    links = (scale * torch.randn(vertices, vertices, generator=generator)).double()
    places = torch.arange(vertices)
    ahead = places - places.unsqueeze(1)
    allowed = (ahead > 0) & (ahead <= (window or vertices))
    links = links.masked_fill(~allowed, -1e9).log_softmax(1).masked_fill(~allowed, NEVER)
    return emissions, links


def all_paths(steps: int, last: int):
    """Every path of a graph: its vertices after each step."""
    for inner in itertools.combinations(range(1, last), steps - 1) if steps <= last else ():
        yield (*inner, last)


def score(path, emissions, links) -> float:
    came = (0, *path[:-1])
    return sum(float(emissions[t, v] + links[u, v]) for t, (u, v) in enumerate(zip(came, path)))


def total(scores) -> float:
    scores = [s for s in scores if s > NEVER]
    return max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores)) if scores else NEVER


def best_path(emissions, links, steps, last):
    batch = torch.arange(len(steps))
    return trace(best_scores(emissions, links), links, steps, last, batch)


def batch_of(graphs):
    """Graphs and targets of several sizes, padded: emissions with a number that would be seen, links with none."""
    width, vertices = (max(e.size(i) for e, _ in graphs) for i in (0, 1))
    emissions = torch.full((len(graphs), width, vertices), 7.0, dtype=torch.float64)
    links = torch.full((len(graphs), vertices, vertices), NEVER, dtype=torch.float64)
    for row, (e, a) in enumerate(graphs):
        emissions[row, : e.size(0), : e.size(1)] = e
        links[row, : len(a), : len(a)] = a
    steps, last = torch.tensor([e.size(0) for e, _ in graphs]), torch.tensor([len(a) - 1 for _, a in graphs])
    return emissions, links, steps, last


@pytest.mark.parametrize("window", [0, 2])
def test_loss_and_best_path_are_those_of_all_paths(window):
    """Every graph with 2 to 7 vertices and every target of 1 to 5 tokens, possible or not, in one batch."""
    generator = torch.Generator().manual_seed(1)
    graphs = [
        random_graph(vertices, steps, generator, window)
        for vertices in range(2, 8)
        for steps in range(1, 6)
        for _ in range(5)
    ]
    emissions, links, steps, last = batch_of(graphs)
    found, chosen = log_marginal(emissions, links, steps, last), best_path(emissions, links, steps, last)
    possible = feasible(steps, last, window)
    for row, (e, a) in enumerate(graphs):
        scores = {path: score(path, e, a) for path in all_paths(len(e), len(a) - 1)}
        wanted = total(scores.values())
        assert float(found[row]) == (pytest.approx(wanted, abs=1e-12) if wanted > NEVER else NEVER)
        assert bool(possible[row]) == (wanted > NEVER)
        if wanted > NEVER:
            assert tuple(chosen[row, : len(e)].tolist()) == max(scores, key=scores.get)
            assert chosen[row, len(e) :].eq(0).all()


def test_the_probabilities_of_all_outputs_add_up_to_one():
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(2, 5, generator=generator).double().log_softmax(0)
    _, links = random_graph(5, 1, generator)
    outputs = [list(y) for n in range(1, 5) for y in itertools.product(range(2), repeat=n)]
    emissions, links, steps, last = batch_of([(words[y], links) for y in outputs])
    assert float(log_marginal(emissions, links, steps, last).exp().sum()) == pytest.approx(1, abs=1e-12)


def naive(emissions, links, steps, last):
    """The forward recursion by autograd, one sentence at a time."""
    totals = []
    for e, a, n, end in zip(emissions, links, steps.tolist(), last.tolist()):
        alpha = [0.0 if v == 0 else None for v in range(end + 1)]
        for t in range(n):
            into = [[alpha[u] + a[u, v] for u in range(v) if alpha[u] is not None] for v in range(end + 1)]
            alpha = [torch.stack(terms).logsumexp(0) + e[t, v] if terms else None for v, terms in enumerate(into)]
        totals.append(alpha[end])
    return torch.stack(totals)


CASES = {  # vertices and tokens; one path only, two vertices, an impossible one
    "plain": [(7, 3), (5, 2), (6, 5)],
    "one path, two vertices, one token": [(4, 3), (2, 1), (6, 1)],
    "an impossible one among them": [(7, 3), (3, 4)],
}


@pytest.mark.parametrize("in_logs", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences_and_of_autograd(name, in_logs, monkeypatch):
    if in_logs:  # nothing is exact enough
        monkeypatch.setattr(paths, "SMALLEST", math.inf)
        monkeypatch.setattr(paths, "LARGEST", -math.inf)
    generator = torch.Generator().manual_seed(3)
    emissions, links, steps, last = batch_of([random_graph(*case, generator) for case in CASES[name]])
    possible = feasible(steps, last)
    emissions.requires_grad_()
    free = links.masked_fill(links.eq(NEVER), 0).requires_grad_()  # finite, for the finite differences

    def loss(e, a):
        return log_marginal(e, a.masked_fill(links.eq(NEVER), NEVER), steps, last)[possible]

    assert torch.autograd.gradcheck(loss, (emissions, free))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[: int(possible.sum())]
    mine = torch.autograd.grad((loss(emissions, free) * weights).sum(), (emissions, free))
    rows = possible.nonzero().squeeze(1)
    wanted = naive(emissions[rows], free[rows], steps[rows], last[rows])
    for found, other in zip(mine, torch.autograd.grad((wanted * weights).sum(), (emissions, free))):
        torch.testing.assert_close(found, other)
        assert found[~possible].eq(0).all()


def test_posteriors_of_an_impossible_target_are_zero_and_those_of_the_others_add_up():
    generator = torch.Generator().manual_seed(4)
    emissions, links, steps, last = batch_of([random_graph(*c, generator) for c in ((7, 3), (3, 5), (2, 1), (6, 5))])
    emissions.requires_grad_(), links.requires_grad_()
    lprobs = log_marginal(emissions, links, steps, last)
    by_emission, by_link = torch.autograd.grad(lprobs, (emissions, links), torch.ones_like(lprobs))
    assert lprobs[1] == NEVER and by_emission[1].eq(0).all() and by_link[1].eq(0).all()
    for row, n in ((0, 3), (2, 1), (3, 5)):
        torch.testing.assert_close(by_emission[row].sum(1), (torch.arange(5) < n).double())
        assert float(by_link[row].sum()) == pytest.approx(n)


def test_a_sentence_alone_has_the_loss_gradient_and_path_that_it_has_in_a_batch(monkeypatch):
    monkeypatch.setattr(paths, "CPU_LINKS", 100)  # groups of one and two sentences
    generator = torch.Generator().manual_seed(5)
    graphs = [random_graph(*case, generator) for case in ((7, 3), (5, 4), (6, 2), (9, 5), (3, 1))]
    for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1)):
        emissions, links, steps, last = batch_of([graphs[i] for i in order])
        emissions.requires_grad_(), links.requires_grad_()
        lprobs = log_marginal(emissions, links, steps, last)
        grads = torch.autograd.grad(lprobs.sum(), (emissions, links))
        chosen = best_path(emissions.detach(), links.detach(), steps, last)
        for row, i in enumerate(order):
            alone = [tensor.clone() for tensor in batch_of([graphs[i]])]
            alone[0].requires_grad_(), alone[1].requires_grad_()
            wanted = log_marginal(*alone)
            torch.testing.assert_close(lprobs[row : row + 1], wanted, rtol=1e-12, atol=1e-12)
            n, size = graphs[i][0].shape
            by_emission, by_link = torch.autograd.grad(wanted.sum(), alone[:2])
            torch.testing.assert_close(grads[0][row, :n, :size], by_emission[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(grads[1][row, :size, :size], by_link[0], rtol=1e-12, atol=1e-12)
            assert chosen[row, :n].tolist() == best_path(*(x.detach() for x in alone))[0].tolist()


@pytest.mark.parametrize("vertices, steps", [(12, 5), (40, 30), (120, 100)])
def test_extreme_numbers_in_float32_are_those_of_float64_in_logs(vertices, steps, monkeypatch):
    """Links of -80 nats and tokens of -100: a path's probability is far below the smallest number, and so is the ratio
    of two of them."""
    generator = torch.Generator().manual_seed(6)
    emissions = -100.0 * torch.randint(2, (2, steps, vertices), generator=generator).double()
    emissions = emissions - torch.rand(2, steps, vertices, generator=generator).double()
    places = torch.arange(vertices)
    links = -80.0 * torch.rand(2, vertices, vertices, generator=generator).double()
    links = links.masked_fill(places <= places.unsqueeze(1), NEVER)
    counts, ends = torch.tensor([steps, steps - 2]), torch.tensor([vertices - 1, vertices - 1])
    results = []
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float64:
            monkeypatch.setattr(paths, "SMALLEST", math.inf)  # in logs
            monkeypatch.setattr(paths, "LARGEST", -math.inf)
        given = emissions.to(dtype).requires_grad_(), links.to(dtype).requires_grad_()
        lprobs = log_marginal(*given, counts, ends)
        results.append((lprobs, *torch.autograd.grad(lprobs.sum(), given)))
    for found, wanted in zip(*results):
        assert found.isfinite().all()
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-4)


def test_what_underflows_in_float64_is_computed_in_logs():
    """The end is reached over vertex 1 only, which is 900 nats less probable than vertex 2 after the first step."""
    emissions = torch.tensor([[[0.0, -900.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]]], dtype=torch.float64)
    links = torch.full((1, 4, 4), NEVER, dtype=torch.float64)
    links[0, 0, 1] = links[0, 0, 2] = math.log(0.5)
    links[0, 1, 3] = 0.0
    emissions.requires_grad_(), links.requires_grad_()
    lprobs = log_marginal(emissions, links, torch.tensor([2]), torch.tensor([3]))
    assert float(lprobs) == pytest.approx(-901 + math.log(0.5))
    by_emission, by_link = torch.autograd.grad(lprobs.sum(), (emissions, links))
    assert by_emission[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert by_link[0].nonzero().tolist() == [[0, 1], [1, 3]]


def test_of_equally_good_paths_the_earliest_vertices_are_taken():
    links = torch.zeros(1, 5, 5).masked_fill(torch.arange(5) <= torch.arange(5).unsqueeze(1), NEVER)
    found = best_path(torch.zeros(1, 3, 5), links, torch.tensor([3]), torch.tensor([4]))
    assert found.tolist() == [[1, 2, 4]]


# -- the links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 2])
def test_links_are_attention_to_later_vertices_mixed_by_the_gate(window):
    torch.manual_seed(1)
    layer = Links(6, 2, 9, window).double()
    states, last = torch.randn(2, 5, 6).double(), torch.tensor([4, 2])
    found = layer(states, last)
    for b in range(2):
        known = torch.cat([states[b], layer.positions.weight[:5]], 1)
        query, key, gate = layer.query(known), layer.key(known), layer.gate(known).softmax(1)
        for u in range(5):
            after = [v for v in range(u + 1, int(last[b]) + 1) if not window or v <= u + window]
            wanted = torch.zeros(5).double()
            for h in range(2):
                part = slice(3 * h, 3 * h + 3)
                if after:
                    logits = torch.stack([query[u, part] @ key[v, part] / math.sqrt(3) for v in after])
                    wanted[after] += gate[u, h] * logits.softmax(0)
            torch.testing.assert_close(found[b, u].exp(), wanted)
            assert float(found[b, u].exp().sum()) == pytest.approx(1.0 if after else 0.0)


def test_links_in_groups_have_the_same_gradient_and_none_is_nan(monkeypatch):
    torch.manual_seed(2)
    layer = Links(6, 2, 9)
    states, last = torch.randn(3, 5, 6, requires_grad=True), torch.tensor([4, 1, 3])
    weights = torch.randn(3, 5, 5)
    found = []
    for budget in (1 << 20, 1):
        monkeypatch.setattr("nar_plugins.models.dag.links.CPU_LOGITS", budget)
        links = layer(states, last)
        loss = (links.masked_fill(links.eq(NEVER), 0) * weights).sum()
        found.append((links.detach(), *torch.autograd.grad(loss, (states, *layer.parameters()))))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)
        assert not one.isnan().any()
