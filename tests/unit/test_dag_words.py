"""The emissions of a graph without the logits of the vocabulary, and fuzzy alignment against all paths."""

import itertools
import math
from collections import Counter

import pytest
import torch
from test_dag_paths import NEVER, all_paths, batch_of, random_graph

from nar_plugins.models.dag.fuzzy import expected_counts, expected_visits, overlap
from nar_plugins.models.dag.words import normaliser, token_lprobs


def test_emissions_are_those_of_a_log_softmax_over_all_words_and_so_are_their_gradients():
    """A repeated token, padding, and more vertices than one chunk."""
    torch.manual_seed(1)
    projection = torch.nn.Linear(6, 11, bias=False).double()
    features = torch.randn(3, 70, 6).double().requires_grad_()
    target = torch.tensor([[3, 4, 3, 2], [7, 2, 1, 1], [10, 0, 0, 2]])
    real = torch.arange(70) < torch.tensor([[70], [64], [3]])
    found = token_lprobs(projection, features, real, target)
    lprobs = projection(features).log_softmax(-1)
    plain = lprobs.gather(2, target.unsqueeze(1).expand(-1, 70, -1)).transpose(1, 2)
    weights = torch.randn(3, 4, 70).double() * real.unsqueeze(1)
    torch.testing.assert_close(found * real.unsqueeze(1), plain * real.unsqueeze(1))
    over = features, projection.weight
    grads = (torch.autograd.grad((x * weights).sum(), over, retain_graph=True) for x in (found, plain))
    for mine, wanted in zip(*grads):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_normalisers_of_many_words_are_summed_in_blocks(scale):
    """More words than a block; at the larger scale, later blocks' logits overflow exp by the first one's."""
    torch.manual_seed(3)
    projection = torch.nn.Linear(16, 700, bias=False)
    features = scale * torch.randn(300, 16)
    with torch.no_grad():
        projection.weight[600:] *= 10
        logits = projection(features).double()
        overflows = (logits.amax(1) - logits[:, :256].amax(1) > 89).any()
        found = normaliser(projection, features)
    assert bool(overflows) == (scale > 1)
    torch.testing.assert_close(found.double(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)


def test_rows_without_a_gradient_cost_nothing_and_change_nothing():
    torch.manual_seed(2)
    projection = torch.nn.Linear(6, 11, bias=False)
    features = torch.randn(200, 6, requires_grad=True)
    weights = torch.zeros(200)
    weights[[5, 150]] = torch.tensor([1.0, -0.5])
    weights[7] = 1e-12  # below the rounding of the others
    over = features, projection.weight
    mine = torch.autograd.grad((normaliser(projection, features) * weights).sum(), over)
    wanted = torch.autograd.grad((projection(features).logsumexp(1) * weights).sum(), over)
    assert mine[0].abs().sum(1).nonzero().squeeze(1).tolist() == [5, 150]
    torch.testing.assert_close(mine[0], wanted[0], atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(mine[1], wanted[1])
    none = torch.autograd.grad((normaliser(projection, features) * 0).sum(), over)
    assert all(grad.eq(0).all() for grad in none)
    empty = normaliser(projection, features[:0])
    assert empty.shape == (0,) and torch.autograd.grad(empty.sum(), projection.weight)[0].eq(0).all()


# -- fuzzy alignment ---------------------------------------------------------------------------------------------------

WORDS = 3


def random_words(vertices: int, generator):
    """The distributions of a vocabulary on the vertices (V, L), and the links (L, L)."""
    words = (2 * torch.randn(WORDS, vertices, generator=generator).double()).log_softmax(0)
    return words, random_graph(vertices, 1, generator)[1]


def outputs(words, links):
    """Every path with every text on it, and its probability."""
    last = len(links) - 1
    for steps in range(1, last + 1):
        for path in all_paths(steps, last):
            moved = sum(float(links[u, v]) for u, v in zip((0, *path[:-1]), path))
            for text in itertools.product(range(WORDS), repeat=steps):
                yield text, math.exp(moved + sum(float(words[w, v]) for w, v in zip(text, path)))


def ngrams(text, order):
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_overlap_is_that_of_all_outputs(order):
    """Targets that are shorter and longer than the expected length, with repeated n-grams, in one batch."""
    generator = torch.Generator().manual_seed(7)
    targets = ([0, 1, 2], [0, 0, 0, 0], [2, 1, 2, 1, 2], [1, 1, 2])
    graphs = [random_words(vertices, generator) for vertices in (5, 4, 6, 5)]
    emissions, links, _, _ = batch_of([(words[y], a) for (words, a), y in zip(graphs, targets)])
    real = torch.arange(5) < torch.tensor([[len(y)] for y in targets])
    target = torch.full((4, 5), 9)
    for row, y in enumerate(targets):
        target[row, : len(y)] = torch.tensor(y)
    emissions = emissions.masked_fill(~real.unsqueeze(2), 0.0)
    found = overlap(emissions, links, real, target, order)
    visits = expected_visits(links.exp())
    counts, _, first = expected_counts(emissions.exp(), links.exp(), visits, real, target, order)
    for row, ((words, a), y) in enumerate(zip(graphs, targets)):
        length = number = 0.0
        expected = Counter()
        for text, probability in outputs(words, a):
            length += probability * len(text)
            number += probability * max(0, len(text) - order + 1)
            for ngram, times in ngrams(text, order).items():
                expected[ngram] += probability * times
        wanted = ngrams(y, order)
        assert float(visits[row].sum()) == pytest.approx(length)
        for place in first[row].nonzero().squeeze(1).tolist():
            assert float(counts[row, place]) == pytest.approx(expected[tuple(y[place : place + order])])
        assert int(first[row].sum()) == len(wanted)
        matched = sum(min(expected[ngram], times) for ngram, times in wanted.items())
        assert float(found[row]) == pytest.approx(min(1, math.exp(1 - len(y) / length)) * matched / number)
        assert 0 <= float(found[row]) <= 1


def test_the_gradient_of_the_overlap_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(8)
    words, links = random_words(5, generator)
    target = torch.tensor([[0, 1, 0, 2]])
    emissions, links = words[target[0]].unsqueeze(0).requires_grad_(), links.unsqueeze(0)
    free = links.masked_fill(links.eq(NEVER), 0).requires_grad_()
    real = torch.ones_like(target, dtype=torch.bool)

    def value(e, a):
        return overlap(e, a.masked_fill(links.eq(NEVER), NEVER), real, target, 2)

    assert torch.autograd.gradcheck(value, (emissions, free))


def test_the_expected_visits_are_those_of_the_recursion():
    _, links = random_words(9, torch.Generator().manual_seed(9))
    arrived = [1.0]
    for v in range(1, 9):
        arrived.append(sum(arrived[u] * math.exp(links[u, v]) for u in range(v)))
    assert expected_visits(links.exp().unsqueeze(0))[0].tolist() == pytest.approx([0.0, *arrived[1:]])
