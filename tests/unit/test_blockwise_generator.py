"""The generator ``blockwise``: its calls, its cache, its heads, its options; that its words are greedy's is in
parity/.
"""

import logging
import math
from argparse import Namespace
from dataclasses import fields

import pytest
import torch
from blockwise_twin import EOS, PAD, WORDS, Oracle, blockwise, greedy, random_models, sample_of, slow_blockwise
from conftest import source_batch
from fairseq.dataclass.configs import GenerationConfig
from tiny import model

from nar_plugins.generators.left_to_right.blockwise import BlockwiseGenerator
from nar_plugins.generators.left_to_right.drafters import CopyDrafter, JacobiDrafter
from nar_plugins.generators.left_to_right.drafters.base import Drafter, Drafts, VerifyResult
from nar_plugins.generators.left_to_right.drafters.length_policy import DraftLengthPolicy
from nar_plugins.generators.registry import resolve
from nar_plugins.modules.block_decoder import BlockDecoder

SOURCE = source_batch([5, 9, 2, 7, 1, 12], WORDS)


def decode(gen, source=SOURCE, **kwargs):
    return [hypos[0] for hypos in gen.generate(gen.models, sample_of(source), **kwargs)]


def texts(hypos):
    return [hypo["tokens"].tolist() for hypo in hypos]


def with_heads(*flags, seed=3):
    """A blockwise model of random weights whose heads are right now and then: they start as head 1, and are shaken a
    bit.
    """
    (one,), task = random_models("--decoder-normalize-before", *flags, arch="blockwise_tiny", seed=seed)
    with torch.no_grad():
        torch.manual_seed(2)
        one.decoder.proposal_heads.weight.normal_(std=0.03)
    return one, task


# -- calls
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 4, 50])
def test_perfect_drafts_take_the_calls_of_the_formula(block):
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    gen = blockwise(models, task, Oracle([h["tokens"] for h in wanted], 0.0), verify_block=block, max_len_b=24)
    for hypo in decode(gen):
        assert hypo["steps"] == 1 + math.ceil((len(hypo["tokens"]) - 1) / block)
    assert gen.statistics.decoder_calls == max(1 + math.ceil((len(hypo["tokens"]) - 1) / block) for hypo in wanted)


def test_wrong_drafts_never_take_more_calls_than_greedy():
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    for block in (None, 2, 5):
        gen = blockwise(models, task, Oracle([h["tokens"] for h in wanted], 1.0), verify_block=block, max_len_b=24)
        assert all(hypo["accepted"] == [1] * len(hypo["tokens"]) for hypo in decode(gen))
        assert gen.statistics.decoder_calls == max(len(hypo["tokens"]) for hypo in wanted)


def test_rows_do_not_touch_one_another():
    models, task = random_models("--encoder-normalize-before", "--decoder-normalize-before")
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    oracle = Oracle([h["tokens"] for h in wanted], [0.0, 1.0, 0.3, 0.6, 0.1, 0.2])
    together = decode(blockwise(models, task, oracle, verify_block=4, max_len_b=24))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for rows in (order, *torch.arange(6).split(1)):
        part = Oracle([torch.tensor([4])] * len(rows), 0.0)
        part.table = oracle.table[rows]
        found = decode(blockwise(models, task, part, verify_block=4, max_len_b=24), SOURCE[rows])
        for hypo, row in zip(found, rows.tolist()):
            assert hypo["tokens"].equal(together[row]["tokens"]) and hypo["accepted"] == together[row]["accepted"]
    assert len({hypo["steps"] for hypo in together}) > 2  # they left at different times


def test_steps_history_and_statistics(caplog):
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    oracle = Oracle([h["tokens"] for h in wanted], 0.3)
    gen = blockwise(models, task, oracle, verify_block=4, max_len_b=24, retain_iter_history=True)
    found = decode(gen)
    for hypo in found:
        assert hypo["steps"] == len(hypo["accepted"]) == len(hypo["history"])
        ends = torch.tensor(hypo["accepted"]).cumsum(0).tolist()
        assert [past["tokens"].tolist() for past in hypo["history"]] == [hypo["tokens"][:end].tolist() for end in ends]
    calls = [count for hypo in found for count in hypo["accepted"][1:]]
    assert gen.statistics.sentences == gen.statistics.first_call_tokens == 6
    assert sum(gen.statistics.accepted_lengths.values()) == len(calls)
    with caplog.at_level(logging.INFO):
        gen.report()
    assert f"mean accepted block {sum(calls) / len(calls):.2f} after the first call" in caplog.text
    assert f"6 sentences, {max(hypo['steps'] for hypo in found)} decoder calls" in caplog.text


# -- the cache
# -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("break_it", [False, True])
def test_the_cache_holds_what_a_fresh_forward_pass_makes(break_it):
    (one,), task = random_models("--decoder-normalize-before", "--decoder-learned-pos")
    wanted = greedy([one], task, SOURCE, max_len_b=24)
    gen = blockwise([one], task, Oracle([h["tokens"] for h in wanted], 0.3), verify_block=4, max_len_b=24)
    seen = []

    def check(call):
        batch = call.batch
        cache, decoder = batch.caches[0], gen.decoders[0]
        if break_it and 1 < len(batch.active) < len(call.active):  # the negative control: rows of the cache exchanged
            cache.select(torch.arange(len(batch.active)).roll(1))
        for row, (sentence, n) in enumerate(zip(batch.active.tolist(), batch.lengths.tolist())):
            source = SOURCE[sentence : sentence + 1]
            fresh = decoder.start(one.encoder(source, src_lengths=source.ne(PAD).sum(1)))
            inputs = torch.cat([torch.tensor([EOS]), batch.tokens[sentence, : n - 1]]).unsqueeze(0)
            decoder(inputs, torch.zeros(1, dtype=torch.long), 0, 0, batch.limit, fresh)
            for mine, theirs in zip(cache.inputs.layers, fresh.inputs.layers):
                seen.extend(float((a[row, :n] - b[0, :n]).abs().max()) for a, b in zip(mine, theirs))
            for mine, theirs in zip(zip(*cache.memory[:2]), zip(*fresh.memory[:2])):  # layer by layer
                real = source.ne(PAD)[0]
                seen.extend(float((a[row][:, real] - b[0][:, real]).abs().max()) for a, b in zip(mine, theirs))

    gen.observer = check
    found = decode(gen)
    if break_it:
        assert max(seen) > 0.1
    else:
        assert texts(found) == texts(wanted) and max(seen) < 1e-4 and len(seen) > 100


def test_a_sinusoidal_table_grows():
    models, _ = random_models(seed=6)
    decoder = BlockDecoder(models[0].decoder)
    positions = torch.tensor([[5, 1500]])
    before = models[0].decoder.embed_positions.weights
    x = decoder.embed(torch.tensor([[4, 4]]), positions, 1500)
    assert models[0].decoder.embed_positions.weights.size(0) == 1500 + PAD + 2 and torch.isfinite(x).all()
    models[0].decoder.embed_positions.weights = before


def test_decoding_leaves_nothing_that_training_cannot_use():
    """The loop runs in inference mode, whose tensors take no gradients and no change in place."""
    models, task = random_models(seed=6)
    one = models[0]
    tables = one.encoder.embed_positions, one.decoder.embed_positions
    for table in tables:
        table.weights = table.weights[: PAD + 2].clone()  # grown while decoding
    hypo = decode(blockwise(models, task, max_len_b=16, print_alignment="hard"))[0]
    assert not any(table.weights.size(0) == PAD + 2 for table in tables)
    for name in ("positional_scores", "attention"):
        hypo[name].div_(2)  # as fairseq-generate does with the first
    one.train()
    one(SOURCE, SOURCE.ne(PAD).sum(1), SOURCE)[0].sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in one.parameters())


@pytest.mark.parametrize("words", [None, 20])
def test_autocast_casts_a_weight_once_a_batch(words):
    one, task = with_heads("--block-head", "sequential", "--share-all-embeddings")
    gen = blockwise([one], task, verify_block=4, max_len_b=16, decode_dtype="bfloat16", draft_vocab_size=words)
    with torch.profiler.profile(record_shapes=True) as profile:
        found = decode(gen)
    rows = {len(one.decoder.output_projection.weight), words or 0}
    casts = [
        event
        for event in profile.events()
        if event.name == "aten::_to_copy"
        and event.input_shapes[0][:1] in ([n] for n in rows)
        and len(event.input_shapes[0]) == 2
    ]
    assert max(hypo["steps"] for hypo in found) > 3 and 1 <= len(casts) <= 2, len(casts)


# -- heads
# ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--freeze-base",),
        ("--block-head", "diag"),
        ("--share-all-embeddings", "--block-size", "6"),
        ("--block-head", "sequential", "--block-size", "6"),
        ("--block-head", "sequential", "--freeze-base"),
    ],
)
def test_heads_against_a_slow_loop(flags):
    one, task = with_heads(*flags)
    block = one.decoder.block_size
    gen = blockwise([one], task, verify_block=block, max_len_b=16)
    found = decode(gen)
    assert texts(found) == texts(greedy([one], task, SOURCE, max_len_b=16))
    for row, hypo in zip(SOURCE, found):
        text, accepted = slow_blockwise(one, row[row.ne(PAD)], block, 16)
        assert hypo["tokens"].tolist() == text and hypo["accepted"] == accepted
    assert texts(decode(blockwise([one], task, max_len_b=16))) == texts(found)  # adaptive
    assert texts(decode(blockwise([one], task, verify_block=2, max_len_b=16))) == texts(found)


@torch.no_grad()
@pytest.mark.parametrize("head", ["full", "sequential"])
def test_only_the_first_words_are_proposed_and_the_output_stays(head):
    one, task = with_heads("--block-head", head)
    whole = decode(blockwise([one], task, verify_block=4, max_len_b=16))
    gen, seen = blockwise([one], task, verify_block=4, max_len_b=16, draft_vocab_size=12), []
    gen.observer = lambda call: seen.extend(call.proposed.flatten().tolist())
    some = decode(gen)
    assert texts(some) == texts(whole) and max(seen) < 12
    assert [h["accepted"] for h in some] != [h["accepted"] for h in whole]  # rarer words are no longer proposed
    assert gen.drafter.cost_per_row(3) < blockwise([one], task, max_len_b=16).drafter.cost_per_row(3)


@torch.no_grad()
def test_sequential_heads_stop_where_the_next_would_not_pay():
    one, task = with_heads("--block-head", "sequential", "--block-size", "6")
    gen = blockwise([one], task, max_len_b=16)
    encoded = [one.encoder.forward_torchscript(sample_of(SOURCE)["net_input"])]
    rows = torch.arange(6)
    features = torch.randn(6, 64, generator=torch.Generator().manual_seed(3))
    verified = VerifyResult(rows, SOURCE, torch.ones(6, dtype=torch.long), [features], None, None)
    state = gen.drafter.begin(sample_of(SOURCE), encoded)
    gen.drafter.set_budget(5, 0.0)
    whole = gen.drafter.draft(verified, 5, state)
    survival = whole.lprobs.cumsum(1).exp().mean(0)
    assert whole.tokens.shape == (6, 5) and (survival[1:] < survival[:-1]).all()
    for place in range(4):
        gen.drafter.set_budget(5, float(survival[place : place + 2].mean()))  # the next is not worth it
        part = gen.drafter.draft(verified, 5, state)
        assert part.tokens.equal(whole.tokens[:, : place + 2]) and part.lprobs.equal(whole.lprobs[:, : place + 2])
    policy = DraftLengthPolicy(gen.drafter, None, "cpu")
    assert policy.budget(1, 20) == 5  # all that there are: it stops by itself
    assert 0 < policy.min_survival(1) < 1 and DraftLengthPolicy(gen.drafter, 4, "cpu").min_survival(1) == 0


@torch.no_grad()
def test_an_ensemble_drafts_with_the_first_heads():
    one, task = with_heads()
    plain, _ = random_models("--decoder-normalize-before", seed=8)
    both = [plain[0], one]
    gen = blockwise(both, task, verify_block=4, max_len_b=16)
    assert gen.drafter.model_index == 1
    assert texts(decode(gen)) == texts(greedy(both, task, SOURCE, max_len_b=16))


# -- lossy
# ---------------------------------------------------------------------------------------------------------------


def first_calls(hypos):
    return [hypo["accepted"][:2] for hypo in hypos]


@torch.no_grad()
def test_lossy_acceptance(caplog):
    one, task = with_heads()
    exact = decode(blockwise([one], task, verify_block=4, max_len_b=16))
    assert "would not say" not in caplog.text
    for settings in (dict(accept_top=1), dict(accept_top=5, accept_gap=0.0)):
        gen = blockwise([one], task, verify_block=4, max_len_b=16, accept="top", **settings)
        assert texts(decode(gen)) == texts(exact)
    assert "the output is not that of greedy search" in caplog.text
    wide = decode(blockwise([one], task, verify_block=4, max_len_b=16, accept="top", accept_top=20))
    assert all(a[1:] >= b[1:] for a, b in zip(first_calls(wide), first_calls(exact)))
    assert first_calls(wide) != first_calls(exact)
    wrong = Oracle([hypo["tokens"] for hypo in exact], 1.0)
    least = decode(blockwise([one], task, wrong, verify_block=4, max_len_b=16, min_block=3))
    assert all(count >= 3 for hypo in least for count in hypo["accepted"][1:-1]) and texts(least) != texts(exact)
    for hypo in [*wide, *least]:
        assert hypo["tokens"][-1] == EOS and EOS not in hypo["tokens"][:-1] and len(hypo["tokens"]) <= 17
        assert torch.isfinite(hypo["positional_scores"]).all()


@pytest.mark.parametrize("junk", [EOS, PAD])
def test_a_lossy_mode_never_takes_an_end_or_padding_that_greedy_search_does_not_say(junk):
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=16)
    oracle = Oracle([h["tokens"] for h in wanted], 1.0, junk)
    for settings in (dict(accept="top", accept_top=20), dict(min_block=4)):
        assert texts(decode(blockwise(models, task, oracle, verify_block=4, max_len_b=16, **settings))) == texts(wanted)


# -- drafters and the size of a block
# --------------------------------------------------------------------------------------


def verified(tokens, greedy_=None, accepted=None):
    lengths = torch.tensor([len(row) for row in tokens])
    table = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True, padding_value=PAD)
    return VerifyResult(torch.arange(len(tokens)), table, lengths, [], greedy_, accepted)


def test_jacobi_takes_what_followed_the_rejected_draft():
    said = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])
    drafts = JacobiDrafter().draft(verified([[4], [8]], said, torch.tensor([0, 2])), 3, None)
    assert drafts.tokens.tolist() == [[5, 6, 7], [11, 11, 11]] and drafts.lprobs is None


def test_copy_follows_the_longest_match_and_else_the_position():
    models, task = random_models("--share-all-embeddings")
    text = torch.tensor([[4, 5, 6, 5, 7, EOS], [8, 9, 10, EOS, PAD, PAD], [4, 5, 9, 5, 7, EOS]])
    drafts = CopyDrafter(models, task.target_dictionary).draft(verified([[4, 6, 5], [20], [5]]), 3, text)
    assert drafts.tokens.tolist() == [[7, EOS, PAD], [9, 10, EOS], [9, 5, 7]]


def test_copy_needs_one_dictionary():
    one, task = model(arch="transformer_tiny", criterion="cross_entropy")
    one.encoder.dictionary = one.encoder.dictionary.__class__()
    with pytest.raises(ValueError, match="--drafter copy: the source dictionary"):
        blockwise([one], task, drafter="copy")


NAR = {
    "cmlm": (),
    "fertilities": ("--source-copy", "fertility"),
    "lengths": ("--source-copy", "uniform"),
    "ctc": ("--source-copy", "uniform", "--ctc", "--upsample", "2"),
    "dag": ("--upsample", "3"),
}
ARCHITECTURES = {"cmlm": "cmlm_tiny", "dag": "dag_tiny"}


@pytest.mark.parametrize("form", NAR)
def test_the_translation_of_a_parallel_model_is_drafted_and_changes_no_word(form):
    models, task = random_models()
    nar = model(*NAR[form], arch=ARCHITECTURES.get(form, "nat_tiny"))[0].eval()
    gen = blockwise(models, task, drafts_from=nar, max_len_b=24)
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    assert texts(decode(gen)) == texts(wanted)
    own = [hypos[0]["tokens"] for hypos in gen.drafter.generator.generate([nar], sample_of(SOURCE))]
    text = gen.drafter.begin(sample_of(SOURCE), [])
    assert [row[: len(one)].equal(one) and row[len(one) :].eq(PAD).all() for row, one in zip(text, own)] == [True] * 6
    assert own[4].tolist() == [EOS]  # the empty source


def test_a_right_translation_is_accepted_block_by_block(monkeypatch):
    models, task = random_models()
    wanted = greedy(models, task, SOURCE, max_len_b=24)
    gen = blockwise(models, task, drafts_from=model(seed=2)[0].eval(), max_len_b=24, verify_block=6)
    monkeypatch.setattr(gen.drafter.generator, "generate", lambda models, sample: [[one] for one in wanted])
    monkeypatch.setattr(type(gen.drafter), "match_length", 24)  # these random texts repeat themselves
    found = decode(gen)
    assert texts(found) == texts(wanted)
    assert all(hypo["steps"] == 1 + math.ceil((len(hypo["tokens"]) - 1) / 6) for hypo in found)


def test_passes_of_the_drafter():
    models, task = random_models()
    gen = blockwise(models, task, drafts_from=model()[0].eval(), drafter="model", drafter_iterations=4)
    assert gen.drafter.generator.config.iterations == 4 and gen.drafter.generator.beam == 1
    assert blockwise(models, task, drafts_from=model()[0].eval()).drafter.generator.config.iterations == 1
    with pytest.raises(ValueError, match="--drafter-iterations 4: a NatModel drafts in one pass"):
        blockwise(models, task, drafts_from=model(arch="nat_tiny")[0].eval(), drafter_iterations=4)
    with pytest.raises(ValueError, match="--drafter jacobi: --drafter model and --drafter-path CKPT go together"):
        blockwise(models, task, drafts_from=model()[0].eval(), drafter="jacobi")


def chosen(policy, rows, right):
    """How many of seven proposals are verified that are right with this probability each."""
    return policy.verify_length(Drafts(torch.zeros(rows, 7, dtype=torch.long), torch.full((rows, 7), math.log(right))))


def test_the_block_grows_with_confidence_and_shrinks_with_the_batch():
    policy = DraftLengthPolicy(Drafter(), None, "cpu")
    sure, unsure = 0.9, 0.2
    assert chosen(policy, 1, sure) == 7 and chosen(policy, 1, unsure) == 1
    assert chosen(policy, 32, sure) < 5 and chosen(policy, 200, unsure) == 0
    assert policy.verify_length(Drafts(torch.zeros(1, 7, dtype=torch.long))) == 7
    policy = DraftLengthPolicy(Drafter(), None, "cpu")
    assert policy.budget(1, 3) == 3 and policy.budget(1, -1) == 0
    before = policy.budget(1, 20)
    for _ in range(20):
        policy.update([0, 0], 4)
    assert policy.budget(1, 20) == 0 < before and policy.budget(100, 20) == 0
    assert DraftLengthPolicy(Drafter(), 4, "cpu").budget(1, 20) == 3
    assert DraftLengthPolicy(Drafter(), 1, "cpu").budget(1, 20) == 0


# -- options
# -------------------------------------------------------------------------------------------------------------

SERVED = {
    "max_len_a": 1.5,
    "max_len_b": 20,
    "min_len": 3,
    "unnormalized": True,
    "lenpen": 0.5,
    "unkpen": 1.0,
    "temperature": 0.5,
    "prefix_size": 1,
    "print_alignment": "hard",
    "print_step": True,
    "retain_iter_history": True,
    "sacrebleu": True,
    "no_early_stop": True,
    "no_beamable_mm": True,
    "no_seed_provided": True,
    "beam": 5,
    "retain_dropout_modules": ["x"],
}
REFUSED = {
    "nbest": 2,
    "retain_dropout": True,
    "beam_mt": 2,
    "max_len_a_mt": 1.0,
    "max_len_b_mt": 9,
    "match_source_len": True,
    "lenpen_mt": 2.0,
    "replace_unk": "@@ ",
    "score_reference": True,
    "no_repeat_ngram_size": 2,
    "sampling": True,
    "sampling_topk": 5,
    "sampling_topp": 0.5,
    "constraints": "ordered",
    "diverse_beam_groups": 2,
    "diverse_beam_strength": 0.1,
    "diversity_rate": 0.1,
    "lm_path": "lm.pt",
    "lm_weight": 0.5,
    "iter_decode_eos_penalty": 1.0,
    "iter_decode_max_iter": 9,
    "iter_decode_force_max_iter": True,
    "iter_decode_with_beam": 5,
    "iter_decode_with_external_reranker": True,
    "decoding_format": "vote",
    "eos_token": "x",
}


def test_every_option_of_fairseqs_is_kept_or_refused_by_name():
    assert SERVED.keys() | REFUSED.keys() == {f.name for f in fields(GenerationConfig) if f.name[0] != "_"}
    models, task = random_models()
    for name, value in SERVED.items():
        blockwise(models, task, **{name: value})
    for name, value in REFUSED.items():
        with pytest.raises(ValueError) as error:
            blockwise(models, task, **{name: value})
        flag = f"--{name.replace('_', '-')}"
        assert str(error.value).startswith(f"{flag} cannot be honoured by --generator blockwise"), error.value


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(beam=4), "--beam 4: blockwise has no beam; use --beam 1, or --generator beam"),
        (dict(draft_vocab_size=0), "--draft-vocab-size 0: at least one"),
        (dict(draft_vocab_size=9), "--draft-vocab-size is for the proposal heads"),
        (dict(verify_block=0), "--verify-block 0: at least one"),
        (dict(min_block=0), "--min-block 0"),
        (dict(verify_block=17), "--verify-block 17: these proposals are for blocks of at most 16 tokens"),
        (dict(accept="top", accept_top=0), "--accept-top 0"),
        (dict(accept="top", accept_gap=-1.0), "--accept-gap -1.0"),
        (dict(accept_top=3), "need --accept top"),
        (dict(accept_gap=3.0), "need --accept top"),
        (dict(min_block=3, verify_block=2), "--min-block 3: no more than --verify-block 2"),
        (dict(drafter="heads"), "--drafter heads: the checkpoint has no proposal heads"),
        (dict(drafter="model"), "--drafter model and --drafter-path CKPT go together"),
        (dict(drafter_iterations=0), "^--drafter-iterations 0: at least one pass of the drafter is needed$"),
        (dict(drafter_iterations=3), "--drafter-iterations needs --drafter-path"),
        (dict(temperature=0.0), "--temperature 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    models, task = random_models()
    with pytest.raises(ValueError, match=said) as error:
        blockwise(models, task, **settings)
    assert "\n" not in str(error.value)


def test_a_larger_block_than_trained_is_refused():
    one, task = with_heads()
    with pytest.raises(ValueError, match="--verify-block 5: .* blocks of at most 4 tokens"):
        blockwise([one], task, verify_block=5)


def test_limits_and_constraints():
    models, task = random_models()
    with pytest.raises(ValueError, match="--min-len 30 is above the limit of 24"):
        decode(blockwise(models, task, max_len_b=24, min_len=30))
    with pytest.raises(ValueError, match="--constraints cannot be honoured"):
        decode(blockwise(models, task), constraints=torch.tensor([[1]]))


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--adaptive-softmax-cutoff", "5,10"), "adaptive softmax"),
        (("--cross-self-attention",), "--cross-self-attention"),
        (("--no-cross-attention",), "no cross-attention"),
    ],
)
def test_a_stock_model_of_other_parts_is_refused(flags, said):
    one, task = model(*flags, arch="transformer_tiny", criterion="cross_entropy")
    with pytest.raises(ValueError, match=f"cannot decode a model with {said}.*use --generator beam"):
        blockwise([one], task)


def test_another_decoder_is_refused():
    one, task = model(arch="lightconv", criterion="cross_entropy")
    with pytest.raises(ValueError, match="decodes Transformers, and LightConvDecoder is another decoder"):
        blockwise([one], task)


def test_auto_follows_the_beam(caplog):
    one, task = with_heads()
    plain = random_models()[0][0]
    assert (
        resolve("auto", [one], 1) == "blockwise"
        and resolve("auto", [plain], 1) == resolve("auto", [plain], 5) == "beam"
    )
    with caplog.at_level(logging.INFO):
        assert resolve("auto", [one], 5) == "beam"
    assert caplog.text.count("--beam 1 or --generator blockwise decodes blockwise") == 1
    assert resolve("blockwise", [one], 5) == resolve("blockwise", [plain], 5) == "blockwise"
    assert isinstance(task.build_generator([one], Namespace(beam=1)), BlockwiseGenerator)
    assert not isinstance(task.build_generator([one], Namespace()), BlockwiseGenerator)
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn"):
        task.build_generator([one], Namespace(beam=1), prefix_allowed_tokens_fn=len)
    with pytest.raises(ValueError, match="--length-beam is no option of --generator blockwise"):
        task.build_generator([one], Namespace(beam=1, length_beam=3))
    with pytest.raises(ValueError, match="--iter-decode-with-external-reranker"):
        task.build_generator([one, plain], Namespace(beam=1, iter_decode_with_external_reranker=True))
