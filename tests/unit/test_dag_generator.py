"""The generator ``dag`` against the enumeration of all paths of graphs made by hand, and on models."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from conftest import source_batch
from test_dag_paths import NEVER, all_paths, random_graph
from test_one_pass import ar, decode, generator
from tiny import dictionary, model

from nar_plugins.data.dictionary import add_mask
from nar_plugins.generators.canvas.dag import walk
from nar_plugins.generators.options import generation_options
from nar_plugins.generators.registry import CONFIGS, GENERATORS
from nar_plugins.models.contract import Canvas, Memory

BOS, PAD, EOS, MASK, V = 0, 1, 2, 24, 25
STRATEGIES = ("greedy", "lookahead", "viterbi", "joint-viterbi")


class Graphs:
    """A model of the contract whose graphs are given: logits (L, V) and links (L, L) of every sentence."""

    generators, predicts, blank, canvas_kind, length_classes = ("dag",), None, None, ("dag", 2.0), 0

    def __init__(self, graphs):
        self.graphs = graphs

    def encode(self, src_tokens, src_lengths=None):
        return Memory([], [], None, {"sentence": src_tokens[:, 0] - 4})

    def canvas(self, memory, plan):
        sizes = torch.tensor([len(self.graphs[i][1]) for i in memory.encoded["sentence"].tolist()])
        padding = torch.arange(int(sizes.max())) >= sizes.unsqueeze(1)
        return Canvas(torch.full_like(padding, MASK, dtype=torch.long), padding if bool(padding.any()) else None)

    def decode(self, canvas, memory, picked=None):
        self.order = memory.encoded["sentence"].tolist()
        logits = torch.zeros(*canvas.inputs.shape, V)
        for row, i in zip(logits, self.order):
            row[: len(self.graphs[i][0])] = self.graphs[i][0]
        return logits

    def project(self, features):
        return features

    def links(self, features, canvas):
        links = torch.full((len(self.order), features.size(1), features.size(1)), NEVER)
        for row, i in zip(links, self.order):
            size = len(self.graphs[i][1])
            row[:size, :size] = self.graphs[i][1]
        return links

    def max_decoder_positions(self):
        return 1000

    def eval(self):
        return self

    def modules(self):
        return []


def made(graphs, **settings):
    words = dictionary(20)
    add_mask(words)
    config = {f.name: f.default for f in fields(CONFIGS["dag"]) if not f.name.startswith("_")}
    ours = {key: settings.pop(key) for key in list(settings) if key in config}
    options = generation_options(SimpleNamespace(**settings))
    return GENERATORS["dag"]([Graphs(graphs)], words, SimpleNamespace(**{**config, **ours}), options, MASK)


def sources(numbers, length=9):
    return torch.tensor([[4 + i] + [4] * (length - 2) + [EOS] for i in numbers])


def random_graphs(sizes, seed=1, scale=2.0):
    """No vertex but the last says </s>: outputs that differ in an inner one are alike."""
    rng = torch.Generator().manual_seed(seed)
    ends = torch.tensor([-30.0 if word == EOS else 0.0 for word in range(V)])
    return [
        (scale * torch.randn(size, V, generator=rng) + ends, random_graph(size, 1, rng, scale=scale)[1].float())
        for size in sizes
    ]


def spoken(graph):
    """The tokens of the vertices and their log-probabilities: the last one says </s>."""
    lprobs = graph[0].double().log_softmax(1)
    allowed = lprobs.clone()
    allowed[:, [BOS, PAD, MASK]] = NEVER
    tokens = allowed.argmax(1)
    tokens[-1] = EOS
    return tokens.tolist(), lprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()


def steps_of(path, graph, words):
    """The positional scores of a path: token and link."""
    return [words[v] + float(graph[1][u, v]) for u, v in zip((0, *path[:-1]), path)]


def paths_of(graph):
    last = len(graph[1]) - 1
    return [path for steps in range(1 if last == 1 else 2, last + 1) for path in all_paths(steps, last)]


def check(hypothesis, path, graph):
    tokens, words = spoken(graph)
    assert hypothesis["tokens"].tolist() == [tokens[v] for v in path]
    assert hypothesis["positional_scores"].tolist() == pytest.approx(steps_of(path, graph, words), abs=1e-4)
    assert hypothesis["steps"] == 1


# -- one step after the other ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["greedy", "lookahead"])
def test_a_walk_takes_the_best_next_vertex(strategy):
    graphs = random_graphs([7, 2, 5, 3, 9])
    found = decode(made(graphs, dag_decode=strategy), sources(range(5)))
    for graph, hypotheses in zip(graphs, found):
        words, at, path = spoken(graph)[1], 0, []
        while at < len(words) - 1:
            ahead = range(at + 1, len(words))
            at = max(ahead, key=lambda v: float(graph[1][at, v]) + (words[v] if strategy == "lookahead" else 0))
            path.append(at)
        check(hypotheses[0], path, graph)
        scores = steps_of(path, graph, words)
        assert hypotheses[0]["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
        assert len(hypotheses) == 1


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_lookahead_computes_the_tokens_of_few_vertices_and_finds_the_same(scale, monkeypatch):
    """Sharp links need few, flat ones all; a first guess of none or of all changes nothing."""
    graphs = random_graphs([40, 30, 35], seed=8, scale=scale)
    seen, found = [], []
    for often in (2.0, 0.2, -1.0):  # the last guess is everything
        monkeypatch.setattr("nar_plugins.generators.canvas.dag.OFTEN", often)
        loop = made(graphs)
        best_tokens, counts = loop.best_tokens, []
        loop.best_tokens = lambda features, f=best_tokens, c=counts: c.append(len(features[0])) or f(features)
        found.append([h[0]["tokens"].tolist() for h in decode(loop, sources([0, 1, 2], 40))])
        seen.append(sum(counts))
    assert found[0] == found[1] == found[2] and seen[2] == 39 + 29 + 34  # the ends say </s>
    assert max(seen) == seen[2] and (scale < 1 or seen[1] < 0.7 * seen[2])


def by_hand():
    """0 -> 1 (0.5), 2 (0.3), 3 (0.2); 1 is unsure of its token, 2 is sure, and then leads astray; 3 is sure to the end.

    Greedy takes 1, lookahead 2, the best path is over 3.
    """
    links = torch.full((5, 5), 0.0)
    links[0, 1:] = torch.tensor([0.5, 0.3, 0.2, 0.0])
    links[1, 4], links[2, 3], links[2, 4], links[3, 4] = 1.0, 0.6, 0.4, 1.0
    logits = torch.zeros(5, V)
    for vertex, (token, sureness) in enumerate([(5, 1.0), (6, 1.0), (7, 9.0), (8, 9.0), (EOS, 9.0)]):
        logits[vertex, token] = sureness
    logits[4, EOS] = 20.0
    return logits, links.log()


@pytest.mark.parametrize(
    "strategy, wanted", [("greedy", [6, EOS]), ("lookahead", [7, 8, EOS]), ("joint-viterbi", [8, EOS])]
)
def test_lookahead_is_better_than_greedy_and_the_best_path_than_lookahead(strategy, wanted):
    graph = by_hand()
    options = {"unnormalized": True} if strategy == "joint-viterbi" else {}
    ((best,),) = decode(made([graph], dag_decode=strategy, **options), sources([0], 3))
    assert best["tokens"].tolist() == wanted


# -- the best path -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["viterbi", "joint-viterbi"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 3.0])
def test_the_best_paths_of_all_lengths_are_those_of_the_enumeration(strategy, reward):
    graphs = random_graphs([7, 2, 5, 3, 6], seed=2)
    loop = made(graphs, dag_decode=strategy, length_beam=4, lenpen=reward)
    found = decode(loop, sources(range(5)))
    for graph, hypotheses in zip(graphs, found):
        words = spoken(graph)[1]
        counted = words if strategy == "joint-viterbi" else [0.0] * len(words)

        def score(path, graph=graph, counted=counted):
            return sum(steps_of(path, graph, counted)) / len(path) ** reward

        best = {len(path): path for path in sorted(paths_of(graph), key=score)}  # of every length
        wanted = sorted(best.values(), key=score, reverse=True)[:4]
        assert len(hypotheses) == len(wanted)
        for hypothesis, path in zip(hypotheses, wanted):
            check(hypothesis, path, graph)
            assert hypothesis["score"] == pytest.approx(score(path), abs=1e-4)


def test_outputs_become_longer_with_the_reward():
    graphs = random_graphs([9] * 6, seed=3)
    lengths = [
        sum(
            len(h[0]["tokens"])
            for h in decode(made(graphs, dag_decode="joint-viterbi", lenpen=reward), sources(range(6)))
        )
        for reward in (0.0, 0.5, 1.0, 2.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_a_path_of_viterbi_has_at_most_twice_the_sources_tokens_whatever_the_batch():
    graphs = random_graphs([12, 12], seed=4)
    loop = made(graphs, dag_decode="viterbi", lenpen=9.0)
    long = decode(loop, sources([0], 9))[0][0]["tokens"]
    assert len(long) == 11  # all vertices
    source = torch.tensor([[4, EOS, *[PAD] * 7], sources([1], 9)[0].tolist()])
    short = decode(loop, source)[0][0]["tokens"]
    assert len(short) == 2 * 2 + 1 and short.tolist() == decode(loop, source[:1, :2])[0][0]["tokens"].tolist()


def test_bounds_and_the_gold_length_choose_among_the_lengths():
    graphs = random_graphs([9, 9], seed=5)

    def lengths(target=None, **settings):
        loop = made(graphs, dag_decode="joint-viterbi", **settings)
        return [[len(h["tokens"]) for h in hypotheses] for hypotheses in decode(loop, sources([0, 1]), target)]

    assert all(min(n) >= 6 for n in lengths(length_beam=9, min_len=5))
    assert all(max(n) <= 4 for n in lengths(length_beam=9, max_len_b=3))
    target = torch.tensor([[5] * 4 + [EOS], [5, EOS, PAD, PAD, PAD]])
    assert lengths(target, gold_length=True) == [[5], [2]]
    assert [sorted(n) for n in lengths(target, gold_length=True, length_beam=3)] == [[4, 5, 6], [2, 3]]
    with pytest.raises(ValueError, match="^--gold-length needs a reference"):
        lengths(gold_length=True)
    with pytest.raises(ValueError, match="^--min-len 8 is above the limit of 7 tokens"):
        lengths(min_len=8)


def test_where_no_path_is_so_short_it_is_said():
    """A window of one: the only path is over all vertices."""
    logits, _ = random_graphs([6])[0]
    links = torch.full((6, 6), NEVER)
    links[torch.arange(5), torch.arange(1, 6)] = 0.0
    assert len(decode(made([(logits, links)], dag_decode="viterbi"), sources([0]))[0][0]["tokens"]) == 5
    with pytest.raises(ValueError, match="^a graph has no path of the lengths that --max-len-a/b or --gold-length"):
        decode(made([(logits, links)], dag_decode="viterbi", max_len_b=2), sources([0]))


# -- what is printed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_banned_symbols_are_never_output_and_the_last_token_is_the_end(strategy):
    logits, links = random_graphs([9], seed=6)[0]
    logits[:, [BOS, PAD, MASK]] = 30.0
    ((best, *_),) = decode(made([(logits, links)], dag_decode=strategy), sources([0]))
    assert not {BOS, PAD, MASK} & set(best["tokens"].tolist()) and best["tokens"].tolist().count(EOS) >= 1
    assert best["tokens"][-1] == EOS and float(best["positional_scores"].max()) < 0


@pytest.mark.parametrize("dedup, wanted", [("none", [5, 5, 6, EOS]), ("token", [5, 6, EOS])])
def test_repeated_tokens_are_dropped_on_request(dedup, wanted):
    logits = torch.zeros(5, V)
    for vertex, token in enumerate([7, 5, 5, 6, EOS]):
        logits[vertex, token] = 20.0
    links = torch.full((5, 5), NEVER)
    links[torch.arange(4), torch.arange(1, 5)] = 0.0
    ((best,),) = decode(made([(logits, links)], dedup=dedup), sources([0]))
    assert best["tokens"].tolist() == wanted


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sentence_alone_is_decoded_as_in_a_batch(strategy):
    graphs = random_graphs([7, 2, 12, 3, 9], seed=7)
    loop = made(graphs, dag_decode=strategy)
    together = decode(loop, sources([3, 2, 0, 1, 4]))
    for place, i in enumerate([3, 2, 0, 1, 4]):
        ((alone, *_),) = decode(loop, sources([i]))
        assert alone["tokens"].tolist() == together[place][0]["tokens"].tolist()
        torch.testing.assert_close(alone["positional_scores"], together[place][0]["positional_scores"])


def test_a_walk_ends_on_the_last_vertex_of_each():
    found = walk(torch.tensor([[2, 0, 3, 0], [1, 0, 0, 0], [1, 2, 3, 0]]), torch.tensor([3, 1, 3]))
    assert found.vertices.tolist() == [[2, 3, 0], [1, 0, 0], [1, 2, 3]] and found.steps.tolist() == [2, 1, 3]


# -- models ------------------------------------------------------------------------------------------------------------


SOURCE = source_batch([5, 9, 2, 7, 1], 20)  # the last one is empty


COPIES = ("--source-copy", "uniform")


def dag(*flags, seed=1, scale=8.0):
    """A model that is sure of what it says, in evaluation mode, and its task."""
    m, task = model("--share-all-embeddings", *flags, arch="dag_tiny", seed=seed)
    with torch.no_grad():
        m.decoder.output_projection.weight.mul_(scale)
        for layer in (m.decoder.links.query, m.decoder.links.key):
            layer.weight.mul_(20)
    return m.eval(), task


@pytest.mark.parametrize("strategy, flags", [*((each, ()) for each in STRATEGIES), ("lookahead", COPIES)])
def test_a_model_is_decoded_alike_in_every_batch(strategy, flags):
    m, task = dag("--upsample", "3", *flags)
    loop = generator("dag", [m], task, dag_decode=strategy)
    together = decode(loop, SOURCE)
    assert [len(hypos) for hypos in together] == [1] * 5 and together[4][0]["tokens"].tolist() == [EOS]
    for row, length in enumerate([5, 9, 2, 7]):
        ((alone,),) = decode(loop, SOURCE[row : row + 1, :length])
        assert alone["tokens"].tolist() == together[row][0]["tokens"].tolist()
        assert alone["score"] == pytest.approx(together[row][0]["score"], abs=1e-4)


def test_an_ensemble_has_the_mean_of_links_and_tokens():
    (one, task), (two, _) = dag(seed=1), dag(seed=2)
    same = decode(generator("dag", [one, one], task), SOURCE)
    alone = decode(generator("dag", [one], task), SOURCE)
    assert [h[0]["tokens"].tolist() for h in same] == [h[0]["tokens"].tolist() for h in alone]
    decode(generator("dag", [one, two], task, dag_decode="joint-viterbi"), SOURCE)
    with pytest.raises(ValueError, match="^an ensemble of dag models needs the same --upsample in all of them$"):
        generator("dag", [one, dag("--upsample", "4")[0]], task)


def test_a_rescorer_orders_the_lengths():
    m, task = dag()
    loop = generator("dag", [m], task, rescorer=ar(task), dag_decode="joint-viterbi", length_beam=4)
    for hypotheses in decode(loop, SOURCE)[:4]:
        scores = [h["rescorer_score"] for h in hypotheses]
        assert len(scores) > 1 and scores == sorted(scores, reverse=True)
        assert all(h["score"] == h["rescorer_score"] for h in hypotheses)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(length_beam=2), "--length-beam: --dag-decode lookahead has one path; give viterbi or joint-viterbi, or"),
        (dict(dag_decode="greedy", gold_length=True), "--gold-length: --dag-decode greedy has one path"),
        (dict(min_len=3), "--min-len: --dag-decode lookahead has one path"),
        (dict(max_len_b=30), "--max-len-a/b: --dag-decode lookahead has one path"),
        (dict(dag_decode="viterbi", length_beam=0), "--length-beam 0: at least one length must be tried"),
        (dict(beam=3), "--beam 3: dag has no beam; use --length-beam 3"),
        (dict(sampling=True), "--sampling cannot be honoured by --generator dag: leave it out"),
    ],
)
def test_what_cannot_be_honoured_is_named(settings, message):
    m, task = dag()
    with pytest.raises(ValueError) as error:
        generator("dag", [m], task, **settings)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
