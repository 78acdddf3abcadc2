"""The aligner finds known alignments; Pharaoh's files are read, or refused by name; fertilities add up."""

import random
from collections import defaultdict

import numpy as np
import pytest
import torch

from nar_plugins.corpora.aligner import Aligner
from nar_plugins.corpora.links import fertilities, one_link_per_target, parse_links
from nar_plugins.corpora.text import Text


def translations(pairs: int, seed: int, reach: float = 1.5, words: int = 300):
    """Sentences and their translation word by word, 0 to 3 target words for a source word, reordered within ``reach``.

    Returns:
        source, target: lists of token ids.
        links: the source position of every target word.
    """
    rng = random.Random(seed)
    fertility = random.Random(0).choices([0, 1, 2, 3], [1, 6, 2, 1], k=words)
    source, target, links = [], [], []
    for _ in range(pairs):
        sentence = [min(int(rng.expovariate(0.015)), words - 1) for _ in range(rng.randint(1, 14))]
        order = sorted(range(len(sentence)), key=lambda j: j + rng.uniform(0, reach))
        source.append([4 + word for word in sentence])
        target.append([4 + 3 * sentence[j] + k for j in order for k in range(fertility[sentence[j]])])
        links += [j for j in order for _ in range(fertility[sentence[j]])]
    return source, target, np.array(links)


def error_rate(aligner: Aligner, source, target, links) -> float:
    return float((aligner.align(source, target) != links).mean())


# -- the aligner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0, 3, 100])  # in order; locally reordered; in any order
def test_known_alignments_are_found(reach):
    aligner = Aligner()
    source, target, links = translations(3000, seed=1, reach=reach)
    assert aligner.train(source, target) == 3000
    assert error_rate(aligner, source, target, links) < 0.05
    assert error_rate(aligner, *translations(300, seed=2, reach=reach)) < 0.05  # never seen


def naive_tables(pairs, iterations: int, alpha: float, tension: float) -> list:
    """The expected table of every iteration, {(source word, target word): p}, one link after the other."""
    table, tables = defaultdict(lambda: 1.0), []
    for _ in range(iterations):
        counts = defaultdict(float)
        for source, target in pairs:
            n, m = len(source), len(target)
            for i, t in enumerate(target, 1):
                prior = [np.exp(-tension * abs(i / m - j / n)) for j in range(1, n + 1)]
                weights = [p / sum(prior) * table[s, t] for s, p in zip(source, prior)]
                for s, weight in zip(source, weights):
                    counts[s, t] += weight / sum(weights)
        row = {s: [c for (other, _), c in counts.items() if other == s] for s, _ in counts}
        psi = lambda x: float(torch.special.digamma(torch.tensor(x, dtype=torch.float64)))  # noqa: E731
        table = {
            (s, t): np.exp(psi(c + alpha) - psi(sum(row[s]) + alpha * len(row[s]))) for (s, t), c in counts.items()
        }
        tables.append(table)
    return tables


def test_the_table_is_that_of_the_naive_twin(monkeypatch):
    monkeypatch.setattr(Aligner, "fit_tension", lambda *_: None)
    source, target, _ = translations(40, seed=3, words=12)
    for iterations, table in enumerate(naive_tables(list(zip(source, target)), 3, alpha=0.1, tension=3.0), 1):
        aligner = Aligner(alpha=0.1, tension=3.0, chunk=50)
        aligner.train(source, target, iterations=iterations)
        pairs = [(key >> 32, key & (1 << 32) - 1) for key in aligner.keys[:-1].tolist()]
        assert set(pairs) == set(table)
        np.testing.assert_allclose(aligner.table[:-1], np.clip([table[pair] for pair in pairs], 1e-9, None), rtol=1e-4)


def test_lambda_is_the_one_whose_prior_has_the_distance():
    lengths, counts, far = np.array([[3, 5], [7, 4], [1, 2]]), np.array([10, 20, 5]), 0.0
    for (n, m), count in zip(lengths, counts):
        away = np.array([[abs(i / m - j / n) for j in range(1, n + 1)] for i in range(1, m + 1)])
        prior = np.exp(-6.0 * away)
        far += count * (away * prior / prior.sum(1, keepdims=True)).sum()
    aligner = Aligner(tension=1.0)
    aligner.fit_tension(lengths, counts, far, steps=10)
    assert aligner.tension == pytest.approx(6.0)


def test_words_never_seen_are_linked_along_the_diagonal():
    aligner = Aligner()
    source, target, _ = translations(300, seed=1)
    aligner.train(source, target)
    unseen = list(range(5000, 5006))
    assert aligner.align(
        [unseen[:4], unseen, source[0]], [unseen[:4], unseen[:3], unseen[: len(source[0])]]
    ).tolist() == [0, 1, 2, 3, 1, 3, 5, *range(len(source[0]))]
    assert Aligner().align([[7, 8]], [[9, 9]]).tolist() == [0, 1]


def test_the_same_again_whatever_the_chunks():
    source, target, _ = translations(1000, seed=4)
    links, tensions = [], []
    for chunk in (1 << 19, 1 << 19, 1000, 1):
        aligner = Aligner(chunk=chunk)
        aligner.train(source, target)
        links.append(aligner.align(source, target).tolist())
        tensions.append(aligner.tension)
    assert links[0] == links[1] == links[2] == links[3]
    assert tensions[0] == tensions[1] == pytest.approx(tensions[2]) == pytest.approx(tensions[3])


def test_lists_and_flat_arrays_are_the_same():
    source, target, _ = translations(200, seed=5)
    flat = [Text(np.concatenate(side).astype(np.int32), np.array([len(s) for s in side])) for side in (source, target)]
    results = []
    for sides in ((source, target), flat):
        aligner = Aligner()
        aligner.train(*sides)
        results.append(aligner.align(*sides).tolist())
    assert results[0] == results[1]


def test_pairs_with_an_empty_side_are_kept():
    aligner = Aligner()
    aligner.train([[5], [], [6, 7], []], [[8], [9, 9], [], []])
    assert aligner.align([[], [5]], [[9, 9], [8]]).tolist() == [0, 0, 0]
    nothing = Aligner()
    assert nothing.train([[], [5]], [[9], []]) == 2
    assert nothing.align([[5, 6]], [[9, 9]]).tolist() == [0, 1]


def test_of_many_pairs_evenly_spaced_ones_are_learnt_from():
    source, target = [[5]] * 50 + [[6]] * 50, [[7]] * 100
    aligner = Aligner()
    assert aligner.train(source, target, most_links=20) == 20
    assert [key >> 32 for key in aligner.keys[:-1].tolist()] == [5, 6]


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match="0 iterations"):
        Aligner().train([[5]], [[6]], iterations=0)


# -- fertilities -------------------------------------------------------------------------------------------------------


def test_fertilities_count_links_and_tie_both_ends():
    links = np.array([0, 2, 2, 0, 0])
    counts = fertilities(links, np.array([3, 0, 2]), np.array([3, 2, 0]))
    assert counts.tolist() == [1, 0, 2, 1] + [3] + [0, 0, 1]


def test_fertilities_add_up_to_the_lengths():
    source, target, links = translations(200, seed=6)
    n, m = (np.array([len(s) for s in side]) for side in (source, target))
    sums = np.add.reduceat(fertilities(links, n, m), (n + 1).cumsum() - (n + 1))
    assert sums.tolist() == (m + 1).tolist()


# -- Pharaoh's format --------------------------------------------------------------------------------------------------


def read(tmp_path, text: str, source, target) -> list:
    (tmp_path / "links").write_text(text, encoding="utf-8")
    sizes = np.array(source), np.array(target)
    return one_link_per_target(parse_links(tmp_path / "links", *sizes), *sizes).tolist()


@pytest.mark.parametrize(
    "line, source, target, links",
    [
        ("0-0 2-1 1-2", 3, 3, [0, 2, 1]),
        (" 1-2\t0-0  2-1 ", 3, 3, [0, 2, 1]),
        ("0-0 2-0 1-1", 3, 2, [0, 1]),  # of two links the nearer to the diagonal
        ("2-0 0-0 1-1", 4, 2, [0, 1]),  # of two as near the earlier
        ("1-1 0-4", 2, 5, [1, 1, 1, 0, 0]),  # unaligned: as the nearest neighbour, on a tie the earlier
        ("", 4, 2, [1, 3]),  # nothing aligned: the diagonal
        ("", 1, 3, [0, 0, 0]),
        ("", 0, 2, [0, 0]),
        ("", 2, 0, []),
    ],
)
def test_every_target_word_gets_one_source_word(tmp_path, line, source, target, links):
    assert read(tmp_path, f"{line}\n", [source], [target]) == links


def test_sentences_do_not_mix(tmp_path):
    assert read(tmp_path, "0-0 1-1\n\n1-0\n2-1", [2, 2, 2, 3], [2, 2, 1, 2]) == [0, 1, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "text, says",
    [
        ("0-0\n0-0 2-1\n", "links, line 2: link 2-1 is outside of 2 source and 2 target words"),
        ("0-0\n0-2\n", "links, line 2: link 0-2 is outside"),
        ("0-0 1-x\n0-0\n", "links, line 1: '1-x' is no link"),
        ("0-0\n0-0 -1-0\n", "links, line 2: '-1-0' is no link"),
        ("0\n0-0\n", "links, line 1: '0' is no link"),
        ("0-0-1\n0-0\n", "links, line 1: '0-0-1' is no link"),
        ("0-0 99999999999999999999-0\n0-0\n", "links, line 1: '99999999999999999999-0' is no link"),
        ("0-0\n", "links has 1 lines, the split 2 pairs"),
        ("0-0\n0-0\n0-0\n", "links has 3 lines, the split 2 pairs"),
    ],
)
def test_other_files_are_refused(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read(tmp_path, text, [2, 2], [2, 2])


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no alignments .*links"):
        parse_links(tmp_path / "links", np.array([1]), np.array([1]))
