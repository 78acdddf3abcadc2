"""A tiny ``dag`` learns sentences with two translations, of which a NAT makes a mixture."""

import torch
from tiny import configuration, model

SYMBOLS, LONGEST, FIRST, PAD, EOS = 8, 5, 4, 1, 2


def two_valued(count: int, rng) -> tuple:
    """Random words and as targets, half and half, the same or each word's successor: (B, 6) both."""
    source = torch.randint(SYMBOLS, (count, LONGEST + 1), generator=rng)
    target = (source + torch.randint(2, (count, 1), generator=rng)) % SYMBOLS
    lengths = torch.randint(3, LONGEST + 1, (count, 1), generator=rng)
    places = torch.arange(LONGEST + 1)
    return tuple(
        (side + FIRST).masked_fill(places == lengths, EOS).masked_fill(places > lengths, PAD)
        for side in (source, target)
    )


def valid_outputs(updates: int, rate: float, arch: str, *flags: str) -> float:
    """The share of 200 outputs that are one of the two, of one pass after a training."""
    m, task = model("--share-all-embeddings", *flags, arch=arch)
    optimizer = torch.optim.Adam(m.parameters(), rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: min(1, (u + 1) / 50) * (1 - u / updates))
    rng = torch.Generator().manual_seed(1)
    for update in range(updates):
        source, target = two_valued(32, rng)
        sample = {"id": torch.arange(32), "target": target, "net_input": {"src_tokens": source}}
        parts = m(source, source.ne(PAD).sum(1), target=target, **m.noise(sample, 1, update))
        optimizer.zero_grad()
        (sum(part.loss for part in parts.values()) / int(parts["words"].count)).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    source, _ = two_valued(200, torch.Generator().manual_seed(9))
    generator = task.build_generator([m], configuration(*flags, arch=arch).generation)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    valid = 0
    for line, found in zip(source.tolist(), generator.generate([m], sample)):
        words = [word - FIRST for word in line if word >= FIRST]
        valid += [word - FIRST for word in found[0]["tokens"].tolist() if word != EOS] in (
            words,
            [(word + 1) % SYMBOLS for word in words],
        )
    return valid / 200


def test_a_graph_keeps_two_translations_apart():
    share = valid_outputs(300, 5e-3, "dag_tiny", "--upsample", "4", "--glancing", "0.5")
    assert share >= 0.9, share


def test_a_nat_mixes_them():
    share = valid_outputs(150, 3e-3, "nat_tiny", "--source-copy", "uniform")
    assert share < 0.6, share
