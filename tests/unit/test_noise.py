"""The noise: splitmix64 as published, U{1..N} masks, and a function of (seed, update, sentence) alone."""

import pytest
import torch

from nar_plugins.data import noise
from nar_plugins.data.noise import VALIDATION_UPDATE, mask_uniform, splitmix64, uniform

PAD, MASK, EOS = 1, 99, 2
BITS = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(x: int) -> int:
    """splitmix64 in Python's unbounded integers."""
    x = (x + GOLDEN) & BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def targets(*lengths: int, width: int = 0) -> torch.Tensor:
    """Rows 10, 11, ... </s>, padded on the right."""
    out = torch.full((len(lengths), max(width, *lengths)), PAD)
    for row, n in enumerate(lengths):
        out[row, :n] = torch.arange(10, 10 + n)
        out[row, n - 1] = EOS
    return out


def test_splitmix64_gives_the_published_numbers():
    # the first three outputs of the reference generator (Vigna, splitmix64.c) from state 0
    states = [0, GOLDEN, 2 * GOLDEN & BITS]
    signed = torch.tensor([s - (1 << 64) if s >= 1 << 63 else s for s in states])
    assert [int(x) & BITS for x in splitmix64(signed)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_splitmix64_treats_negative_numbers_as_unsigned():
    for x in (-1, -2, -(1 << 63), (1 << 63) - 1, 12345):
        assert int(splitmix64(torch.tensor(x))) & BITS == mixed(x & BITS)


@pytest.mark.parametrize("seed, update", [(1, 0), (1, 7), (42, VALIDATION_UPDATE)])
def test_uniform_is_the_hash_of_seed_update_sentence_and_counter(seed, update):
    got = uniform(seed, update, torch.tensor([0, 3, 1000]), 4)
    state = mixed(mixed(seed) ^ (update & BITS))
    for row, sentence in enumerate((0, 3, 1000)):
        for counter in range(4):
            bits = mixed(mixed(state ^ sentence) ^ mixed(counter))
            assert float(got[row, counter]) == (bits >> 11) * 2.0**-53


def test_the_first_numbers_do_not_depend_on_how_many_are_drawn():
    few, many = (uniform(1, 2, torch.arange(5), draws) for draws in (3, 50))
    assert torch.equal(few, many[:, :3])


def test_uniform_numbers_fill_the_unit_interval_evenly():
    draws = uniform(1, 1, torch.arange(2000), 20)
    assert 0 <= float(draws.min()) and float(draws.max()) < 1
    # 40,000 draws in 10 bins of 4,000: a binomial's deviation is 60
    assert (draws.flatten() * 10).long().bincount(minlength=10).sub(4000).abs().max() < 300


def test_the_canvas_is_the_target_with_masks_at_the_chosen_positions():
    target = targets(3, 8, 1, 5)
    canvas, chosen = mask_uniform(target, torch.tensor([4, 9, 2, 7]), 1, 10, PAD, MASK)
    assert torch.equal(canvas.eq(MASK), chosen)
    assert torch.equal(canvas[~chosen], target[~chosen])
    assert not (chosen & target.eq(PAD)).any()
    assert chosen.any(1).all()  # at least one


def test_a_sentence_of_one_token_is_always_masked():
    canvas, _ = mask_uniform(targets(*[1] * 50), torch.arange(50), 1, 0, PAD, MASK)
    assert canvas.eq(MASK).all()


def test_the_number_of_masks_is_uniform_from_one_to_all():
    n, sentences = 5, 20000
    _, chosen = mask_uniform(targets(n).expand(sentences, n), torch.arange(sentences), 3, 1, PAD, MASK)
    counts = chosen.sum(1).bincount(minlength=n + 1)
    assert counts[0] == 0
    # 4,000 each; a binomial's deviation is 57
    assert counts[1:].sub(sentences // n).abs().max() < 250


def test_every_position_is_masked_equally_often():
    n, sentences = 6, 20000
    _, chosen = mask_uniform(targets(n).expand(sentences, n), torch.arange(sentences), 3, 1, PAD, MASK)
    # E[k]/N = (N + 1) / 2N = 7/12 of 20,000 = 11,667; the deviation is 70
    assert chosen.sum(0).sub(11667).abs().max() < 300


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 100, 1023, 1024])
def test_the_largest_draw_masks_everything_and_not_one_more(monkeypatch, n):
    largest = 1 - 2.0**-53
    monkeypatch.setattr(
        noise, "uniform", lambda seed, update, ids, draws: torch.full((len(ids), draws), largest, dtype=torch.float64)
    )
    _, chosen = mask_uniform(targets(n, width=n + 2), torch.tensor([0]), 1, 1, PAD, MASK)
    assert int(chosen.sum()) == n


def test_noise_does_not_depend_on_the_batch_or_its_padding():
    lengths, ids = (4, 9, 6), torch.tensor([11, 5, 8])
    together, _ = mask_uniform(targets(*lengths), ids, 1, 3, PAD, MASK)
    for row, n in enumerate(lengths):
        alone, _ = mask_uniform(targets(n), ids[row : row + 1], 1, 3, PAD, MASK)
        assert torch.equal(alone[0], together[row, :n])
    wide, _ = mask_uniform(targets(*lengths, width=30), ids, 1, 3, PAD, MASK)
    assert torch.equal(wide[:, :9], together)
    backwards, _ = mask_uniform(targets(*lengths).flip(0), ids.flip(0), 1, 3, PAD, MASK)
    assert torch.equal(backwards.flip(0), together)


def test_noise_does_not_touch_the_running_random_generator():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    mask_uniform(targets(5, 6), torch.tensor([0, 1]), 1, 3, PAD, MASK)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("other", [dict(seed=2), dict(update=4), dict(update=VALIDATION_UPDATE), dict(first=1)])
def test_another_seed_update_or_sentence_gives_another_mask(other):
    def draw(seed=1, update=3, first=0):
        rows = targets(*[12] * 200)
        return mask_uniform(rows, torch.arange(first, first + 200), seed, update, PAD, MASK)[1]

    differing = (draw() != draw(**other)).any(1).sum()
    assert differing > 180  # two random masks of 12 positions are seldom equal
