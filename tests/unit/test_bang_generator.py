"""The policies of ``bang``: where they meet, what a pass costs, and that a batch is its sentences."""

import math
import zlib
from argparse import Namespace
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from blockwise_twin import EOS, MASK, PAD, WORDS, beam, sample_of
from conftest import source_batch
from fairseq.sequence_generator import SequenceGenerator
from tiny import model

from nar_plugins.generators.left_to_right.bang import BangConfig, BangGenerator
from nar_plugins.generators.left_to_right.blockwise import BlockwiseConfig, BlockwiseGenerator
from nar_plugins.generators.left_to_right.drafters.masks import MaskDrafter
from nar_plugins.generators.options import generation_options
from nar_plugins.generators.registry import resolve

SOURCE = source_batch([5, 9, 2, 7, 1, 12], WORDS)
LIMIT = 14


def random_bang(*flags, seed=22):
    """A model of random weights that says many different things, and in time </s>; and its task."""
    one, task = model(*flags, arch="bang_tiny", criterion="cross_entropy", seed=seed)
    one.eval()
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if weight.dim() > 1:  # numbers of its name, so that a new parameter elsewhere changes nothing here
                torch.manual_seed(seed + zlib.crc32(name.encode()))
                std = 1.5 if name == "decoder.embed_positions.weight" else 0.5 if "embed" in name else 0.15
                weight.normal_(std=std)
        one.decoder.embed_tokens.weight[EOS] *= 1.3
    return one, task


def settings_of(config, settings) -> SimpleNamespace:
    made = {f.name: f.default for f in fields(config) if not f.name.startswith("_")}
    made.update({name: settings.pop(name) for name in list(settings) if name in made})
    return SimpleNamespace(**made)


def bang(models, task, policy="adaptive", **settings) -> BangGenerator:
    """A generator with the flags' defaults, overridden by ``settings`` (fairseq's too)."""
    config = settings_of(BangConfig, {"bang_policy": policy, **settings})
    settings = {name: value for name, value in settings.items() if not hasattr(config, name)}
    options = generation_options(Namespace(**{"beam": 1, "max_len_b": LIMIT, **settings}))
    return BangGenerator(models, task.target_dictionary, config, options, MASK)


def decode(models, task, policy="adaptive", source=SOURCE, **settings):
    gen = bang(models, task, policy, **settings)
    return [hypos[0] for hypos in gen.generate(models, sample_of(source))]


def greedy(models, task, source=SOURCE, **settings):
    search = SequenceGenerator(models, task.target_dictionary, beam_size=1, max_len_b=LIMIT, **settings)
    return [hypos[0] for hypos in beam(search, models, task.target_dictionary).generate(models, sample_of(source))]


def texts(hypos):
    return [hypo["tokens"].tolist() for hypo in hypos]


def same(found, wanted):
    assert texts(found) == texts(wanted)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one["positional_scores"], other["positional_scores"], atol=1e-4, rtol=1e-4)
        assert abs(float(one["score"]) - float(other["score"])) < 1e-4


@pytest.fixture(scope="module")
def made():
    one, task = random_bang()
    return [one], task


def test_the_random_model_is_worth_testing_with(made):
    wanted = greedy(*made)
    assert len(set(map(tuple, texts(wanted)))) == 6 and len({len(text) for text in texts(wanted)}) > 2


# -- where policies meet
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
@pytest.mark.parametrize(
    "settings",
    [
        dict(policy="block", bang_block=1),
        dict(policy="adaptive", bang_tau=1.5),
        dict(policy="adaptive", bang_block=1),
        dict(policy="prefix", bang_prefix=LIMIT + 1),
        dict(policy="cascade", bang_min_score=0.0, bang_tau=1.5),
    ],
)
def test_one_token_a_pass_is_greedy_search(settings, flags):
    one, task = random_bang(*flags)
    found = decode([one], task, **settings)
    same(found, greedy([one], task))
    again = settings["policy"] == "cascade"
    assert all(hypo["steps"] == len(hypo["tokens"]) + again for hypo in found)


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
def test_everything_at_once(flags):
    one, task = random_bang(*flags)
    wanted = decode([one], task, "nar")
    assert {hypo["steps"] for hypo in wanted} == {1}
    for settings in (
        dict(policy="prefix", bang_prefix=0),
        dict(policy="block", bang_block=LIMIT + 1),
        dict(policy="cascade", bang_min_score=-1e9),
    ):
        found = decode([one], task, **settings)
        if settings["policy"] != "cascade":
            same(found, wanted)
        else:  # but for what repeats its neighbour
            for a, b in zip(found, wanted):
                repeats = bool((b["tokens"][1:] == b["tokens"][:-1]).any())
                assert a["tokens"].equal(b["tokens"]) or repeats
    if not flags:
        same(decode([one], task, "adaptive", bang_tau=0.0, bang_block=LIMIT + 1), wanted)


@pytest.mark.parametrize("block", [2, 3, 8])
def test_passes_are_those_of_the_formulas(made, block):
    for hypo in decode(*made, "block", bang_block=block):
        assert hypo["steps"] == math.ceil(len(hypo["tokens"]) / block)
    for hypo in decode(*made, "prefix", bang_prefix=block):
        assert hypo["steps"] == min(len(hypo["tokens"]), block + 1)
    for hypo in decode(*made, "adaptive", bang_tau=0.3, bang_block=block):
        assert (
            sum(hypo["accepted"]) == len(hypo["tokens"])
            and 1 <= min(hypo["accepted"]) <= max(hypo["accepted"]) <= block
        )


def test_passes_grow_with_the_threshold(made):
    passes = [sum(hypo["steps"] for hypo in decode(*made, bang_tau=tau)) for tau in (0.0, 2.0)]
    assert passes[0] < passes[1]


# -- against slow twins
# ----------------------------------------------------------------------------------------------------


def naive(one, task, source, policy, **settings):
    """A sentence at a time, everything computed anew in every pass: its tokens and passes."""
    rule = bang([one], task, policy, **settings).policy
    encoded = one.encoder(source.unsqueeze(0), src_lengths=torch.tensor([source.numel()]))
    tokens, passes = [], 0
    while not tokens or tokens[-1] != EOS:
        n = rule.masks(len(tokens), LIMIT + 1 - len(tokens))
        given = torch.tensor([[EOS, *tokens]])
        x = one.decoder.decode_step(
            given,
            torch.tensor([0]),
            one.decoder.start(encoded),
            n,
            torch.tensor([[len(tokens)]]),
            sees_bos=rule.sees_start,
        )
        logits = one.decoder.output_layer(x[0, 0])
        logits[:, MASK] = -math.inf
        lprobs = logits.log_softmax(-1)
        lprobs[:, PAD] = -math.inf
        for j in range(n):
            if len(tokens) + j >= LIMIT:
                lprobs[j, [w for w in range(MASK + 1) if w != EOS]] = -math.inf
            if len(tokens) + j < 1:
                lprobs[j, EOS] = -math.inf
        value, word = lprobs.max(-1)
        kept = word[: int(rule.kept(value.unsqueeze(0), torch.tensor([len(tokens)])))].tolist()
        tokens += kept[: kept.index(EOS) + 1] if EOS in kept else kept
        passes += 1
    return tokens, passes


@pytest.mark.parametrize(
    "settings",
    [
        dict(policy="nar"),
        dict(policy="block", bang_block=3),
        dict(policy="prefix", bang_prefix=2),
        dict(policy="adaptive", bang_tau=0.2),
        dict(policy="adaptive", bang_tau=0.5, bang_block=4),
    ],
)
def test_cache_and_batch_change_nothing(made, settings):
    (one,), task = made
    found = decode([one], task, **settings)
    for row, hypo in zip(SOURCE, found):
        source = row[row.ne(PAD)]
        assert (hypo["tokens"].tolist(), hypo["steps"]) == naive(one, task, source, **settings)
    for rows in (torch.tensor([3, 0, 5, 1, 4, 2]), *torch.arange(6).split(1)):
        part = decode([one], task, source=SOURCE[rows], **settings)
        assert texts(part) == [texts(found)[row] for row in rows.tolist()]


def test_an_ensemble_is_the_mean(made):
    (one,), task = made
    other = random_bang(seed=21)[0]
    same(decode([one, other], task, bang_block=1), greedy([one, other], task))
    assert texts(decode([one, one], task)) == texts(decode([one], task))


# -- verify
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
@pytest.mark.parametrize("block", [None, 1, 2, 4, 8])
def test_verify_says_what_greedy_search_says(block, flags):
    one, task = random_bang(*flags)
    config = settings_of(BlockwiseConfig, {"verify_block": block})
    options = generation_options(Namespace(beam=1, max_len_b=LIMIT))
    for source in (SOURCE, SOURCE[:1]):
        gen = BlockwiseGenerator([one], task.target_dictionary, config, options, MASK)
        assert isinstance(gen.drafter, MaskDrafter)
        found = [hypos[0] for hypos in gen.generate([one], sample_of(source))]
        same(found, greedy([one], task, source))
        assert all(hypo["steps"] <= len(hypo["tokens"]) for hypo in found)
        tokens, masks = gen.statistics.tokens, gen.statistics.mask_positions
        assert tokens == sum(len(hypo["tokens"]) for hypo in found) and (
            masks == tokens if block == 1 else masks > tokens
        )


def test_verify_drafts_what_the_masks_say(made):
    """The second call verifies what ``block`` would have said after the first token."""
    (one,), task = made
    gen = BlockwiseGenerator(
        [one],
        task.target_dictionary,
        settings_of(BlockwiseConfig, {"verify_block": 3}),
        generation_options(Namespace(beam=1, max_len_b=LIMIT)),
        MASK,
    )
    calls = []
    gen.observer = calls.append
    gen.generate([one], sample_of(SOURCE))
    wanted = decode([one], task, "block", bang_block=3)
    second = calls[1]
    live = second.active.tolist()
    assert [row[1:3] for row in texts(wanted)][0] == second.proposed[live.index(0)].tolist()


# -- options and output
# -------------------------------------------------------------------------------------------------------


def test_auto_is_bang_and_others_are_served():
    one = random_bang()[0]
    assert [resolve(name, [one]) for name in ("auto", "beam", "blockwise")] == ["bang", "beam", "blockwise"]


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(beam=4), "--beam 4: bang has no beam; use --bang-policy ar"),
        (dict(nbest=2), "--nbest cannot be honoured"),
        (dict(bang_block=0), "--bang-block 0"),
        (dict(bang_prefix=-1), "--bang-prefix -1"),
        (dict(bang_tau=-0.1), "--bang-tau -0.1"),
        (dict(bang_min_score=0.5), "--bang-min-score 0.5"),
        (dict(bang_release_output=True, dedup="token"), "--bang-release-output"),
        (dict(sampling=True), "--sampling cannot be honoured by --generator bang"),
        (dict(temperature=0.0), "--temperature 0.0"),
        (dict(prefix_size=2), "--prefix-size cannot be honoured"),
    ],
)
def test_what_makes_no_sense_is_refused(made, settings, said):
    with pytest.raises(ValueError, match=said) as error:
        bang(*made, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(bang_policy="ar", dedup="token"), "--dedup is not read by --bang-policy ar"),
        (
            dict(bang_policy="verify", bang_release_output=True),
            "--bang-release-output is not read by --bang-policy verify",
        ),
        (dict(bang_policy="nar", bang_block=4), "--bang-block is not read"),
        (dict(bang_prefix=3), "--bang-prefix is not read"),
        (dict(bang_policy="block", bang_tau=0.5), "--bang-tau is not read"),
        (
            dict(bang_policy="verify", bang_block=32),
            "--bang-block 32: --bang-policy verify takes blocks of 1 to 16 tokens",
        ),
    ],
)
def test_an_option_that_the_policy_does_not_read_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        BangGenerator.served_by(settings_of(BangConfig, settings))


def test_who_serves_a_policy():
    for policy, name in (("ar", "beam"), ("verify", "blockwise"), ("cascade", "bang")):
        assert BangGenerator.served_by(settings_of(BangConfig, {"bang_policy": policy}))[0] == name
    name, config = BangGenerator.served_by(settings_of(BangConfig, {"bang_policy": "verify", "bang_block": 5}))
    assert name == "blockwise" and config.verify_block == 5


def test_output_of_the_release(made):
    gen = bang(*made, "nar", bang_release_output=True)
    assert [[5, 5, 6, 6, 5, EOS][i] for i in gen.kept([5, 5, 6, 6, 5, EOS])] == [5, 6, 5, EOS]


def test_history_statistics_and_report(made, caplog):
    gen = bang(*made, "block", bang_block=4, retain_iter_history=True)
    found = [hypos[0] for hypos in gen.generate(made[0], sample_of(SOURCE))]
    for hypo in found:
        assert [len(past["tokens"]) for past in hypo["history"]][-1] == len(hypo["tokens"])
    with caplog.at_level("INFO"):
        gen.report()
    tokens, passes = sum(len(h["tokens"]) for h in found), sum(h["steps"] for h in found)
    assert f"6 sentences, {passes / 6:.2f} passes and {tokens / 6:.2f} tokens a sentence" in caplog.text
    assert f"{1 - tokens / gen.statistics.mask_positions:.1%} of the masks wasted" in caplog.text


def test_cascade_decodes_the_doubtful_again(made):
    one_pass = decode(*made, "nar", unnormalized=False)
    means = sorted(float(hypo["positional_scores"].mean()) for hypo in one_pass)
    theta = (means[2] + means[3]) / 2
    found, adaptive = decode(*made, "cascade", bang_min_score=theta), decode(*made, "adaptive")
    for a, b, c in zip(found, one_pass, adaptive):
        doubtful = float(b["positional_scores"].mean()) < theta or bool((b["tokens"][1:] == b["tokens"][:-1]).any())
        assert a["tokens"].equal((c if doubtful else b)["tokens"])
        assert a["steps"] == (1 + c["steps"] if doubtful else 1)
