"""The model ``bang``: one pass is all separate runs, nothing leaks, the cache changes nothing (spec E.3, groups 3 to 6,
11).
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from bang_twin import EOS, PAD, SOURCE, dense_decoder, inputs, random_bang, row
from fairseq.models import ARCH_MODEL_REGISTRY
from tiny import arguments, model, total

from nar_plugins.generators.options import generation_options
from nar_plugins.models.bang.block_decoder import BangBlockDecoder
from nar_plugins.models.bang.losses import BangObjective
from nar_plugins.models.bang.stream_layout import mask_counts

LENGTHS = [7, 3, 5]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def encoded(one, source=SOURCE):
    return one.encoder(source, src_lengths=source.ne(PAD).sum(1))


def all_masks(one, out, before, real, streams=0, counts=None, with_ar=False, **where):
    """Features (C, D) of the rows, and a dictionary (sentence, start, offset) -> place."""
    counts = mask_counts(real, where.pop("target_idx", None), streams) if counts is None else counts
    layout = one.decoder.layout(real, counts, with_ar, **where)
    features = one.decoder.mask_features(before, one.decoder.memory(out), layout)
    return features, {key: i for i, key in enumerate(zip(*(part.tolist() for part in layout.masks[:3])))}


def of_sentence(out, b):
    return {
        "encoder_out": [out["encoder_out"][0][:, b : b + 1]],
        "encoder_padding_mask": [out["encoder_padding_mask"][0][b : b + 1]],
    }


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
@pytest.mark.parametrize("streams", [1, 2, 4, 7])
def test_one_pass_is_a_separate_run_for_every_row(streams, flags):
    one, _ = random_bang(*flags)
    target, before = inputs(LENGTHS)
    with torch.no_grad():
        out = encoded(one)
        features, where = all_masks(one, out, before, target.ne(PAD), streams)
        for b, length in enumerate(LENGTHS):
            for s in range(length):
                count = min(streams, length - s)
                sees_no_bos = s == 0 and bool(flags)
                alone = row(one, of_sentence(out, b), before[b : b + 1, : s + 1], count, sees_no_bos)[0]
                torch.testing.assert_close(features[[where[b, s, j] for j in range(count)]], alone, **EXACT)
    assert len(where) == sum(min(streams, length - s) for length in LENGTHS for s in range(length))


def test_rows_stay_inside_their_spans():
    one, _ = random_bang()
    target, before = inputs([7, 7, 5])
    spans = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 0, 0]])
    positions = torch.tensor([[5, 6, 7, 20, 21, 22, 23], [3, 4, 5, 6, 7, 8, 9], [3, 4, 40, 41, 42, 1, 1]])
    with torch.no_grad():
        out = encoded(one)
        args = {"target_idx": spans, "positions": positions}
        features, where = all_masks(one, out, before, target.ne(PAD), **args)
        assert {(s, j) for b, s, j in where if b == 0} == {
            (0, 0),
            (0, 1),
            (0, 2),
            (1, 0),
            (1, 1),
            (2, 0),
            (3, 0),
            (3, 1),
            (3, 2),
            (3, 3),
            (4, 0),
            (4, 1),
            (4, 2),
            (5, 0),
            (5, 1),
            (6, 0),
        }
        for b, s, count in (
            (0, 3, 4),
            (0, 4, 3),
            (2, 2, 3),
            (1, 4, 3),
        ):  # earlier spans stay visible to the tokens after
            tokens = F.pad(before[b : b + 1, : s + 1], (0, count), value=-1)
            place = torch.cat([positions[b, : s + 1], positions[b, s : s + count] + 1])
            seen = torch.ones(len(place), len(place), dtype=torch.bool).tril()
            alone = dense_decoder(one, of_sentence(out, b), tokens, place, seen)[0, s + 1 :]
            torch.testing.assert_close(features[[where[b, s, j] for j in range(count)]], alone, **EXACT)


def test_no_mask_learns_from_a_hidden_token():
    one, _ = random_bang()
    target, before = inputs([6])
    out = encoded(one, SOURCE[1:2])
    kept = []
    handle = one.decoder.embed_tokens.register_forward_hook(lambda m, i, y: kept.append(y.requires_grad_()) or kept[-1])
    try:
        features, where = all_masks(one, out, before, target.ne(PAD))
    finally:
        handle.remove()
    probe = torch.randn(64, dtype=torch.float64)  # the sum of a normed vector has no gradient
    for (_, s, j), place in where.items():
        (gradient,) = torch.autograd.grad(features[place] @ probe, kept[0], retain_graph=True)
        reached = gradient.abs().sum(1).ne(0)
        assert reached.tolist() == [i <= s for i in range(6)], (s, j)


def test_later_tokens_batch_mates_and_padding_change_nothing():
    one, _ = random_bang()
    target, before = inputs([6, 4])
    with torch.no_grad():
        out = encoded(one, SOURCE[:2])
        features, where = all_masks(one, out, before, target.ne(PAD))
        other = before.clone()
        other[0, 4:] = 9
        changed, _ = all_masks(one, out, other, target.ne(PAD))
        for (b, s, j), place in where.items():
            assert changed[place].equal(features[place]) == (b == 1 or s < 4), (b, s, j)
        alone, there = all_masks(one, encoded(one, SOURCE[1:2]), before[1:, :4], target[1:, :4].ne(PAD))
        for (_, s, j), place in there.items():
            torch.testing.assert_close(alone[place], features[where[1, s, j]], **EXACT)
        rows = mask_counts(target.ne(PAD))
        rows[:, 1:3] = 0  # the main stream does not notice which masks there are
        some, there = all_masks(one, out, before, target.ne(PAD), counts=rows)
        for key, place in there.items():
            torch.testing.assert_close(some[place], features[where[key]], **EXACT)


def test_forward_is_an_ordinary_decoder_and_the_first_column():
    one, _ = random_bang()
    target, before = inputs(LENGTHS)
    with torch.no_grad():
        out = encoded(one)
        logits, extra = one.decoder(before, encoder_out=out)
        features, where = all_masks(one, out, before, target.ne(PAD))
        for (b, s, j), place in where.items():
            if j == 0:
                torch.testing.assert_close(one.decoder.output_layer(features[place]), logits[b, s], **EXACT)
        torch.testing.assert_close(one(SOURCE, SOURCE.ne(PAD).sum(1), before)[0], logits, **EXACT)
        attention = extra["attn"][0]
        assert attention.shape == (3, 7, 9)
        torch.testing.assert_close(attention.sum(2), torch.ones(3, 7))
        assert attention[0, :, 5:].eq(0).all()  # the source's padding


@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 2, 1], [7]])
@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
def test_incremental_is_the_whole(steps, flags):
    one, _ = random_bang(*flags)
    _, before = inputs([7, 7, 7])
    with torch.no_grad():
        out = encoded(one)
        whole = one.decoder(before, encoder_out=out)[0]
        state, at, parts, order = {}, 0, [], torch.tensor([2, 0, 1])
        for step in steps:
            at += step
            parts.append(one.decoder(before[:, :at], encoder_out=out, incremental_state=state)[0])
        torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
        # a beam's hypotheses change places, then half of the sentences leave
        state = {}
        one.decoder(before[:, :4], encoder_out=out, incremental_state=state)
        one.decoder.reorder_incremental_state_scripting(state, order[:2])
        here = one.encoder.reorder_encoder_out(out, order[:2])
        next_ = one.decoder(before[order[:2], :5], encoder_out=here, incremental_state=state)[0]
        torch.testing.assert_close(next_[:, 0], whole[order[:2], 4], **EXACT)


@pytest.mark.parametrize("beam", [1, 5])
def test_fairseqs_search_decodes_it_and_never_says_mask(beam):
    one, task = random_bang(dtype=torch.float32)
    options = generation_options(SimpleNamespace(beam=beam, max_len_a=0, max_len_b=8))
    task.cfg.generator = "beam"
    generator = task.build_generator([one], options)
    sample = {"net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)}, "target": None}
    with torch.no_grad():
        for b, hypotheses in enumerate(generator.generate([one], sample)):
            assert len(hypotheses) == beam
            for found in hypotheses:
                tokens = found["tokens"]
                assert task.mask_index not in tokens.tolist() and tokens[-1] == EOS
                before = F.pad(tokens[:-1], (1, 0), value=EOS).unsqueeze(0)
                logits = one.decoder(before, encoder_out=of_sentence(encoded(one), b))[0][0]
                logits[:, task.mask_index] = -float("inf")
                scores = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
                torch.testing.assert_close(found["positional_scores"], scores, rtol=0, atol=1e-4)


# -- the cache
# -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
def test_blocks_on_the_cache_are_rows(flags):
    """Ragged rows: each keeps its own number of the tokens that it was fed; the others are overwritten."""
    one, _ = random_bang(*flags)
    _, before = inputs([40, 40, 40], seed=5)  # beyond the slots that a cache starts with
    with torch.no_grad():
        out = encoded(one)
        cache, lengths, alive = one.decoder.start(out), torch.zeros(3, dtype=torch.long), torch.arange(3)
        for step, (new, masks, kept) in enumerate(
            [(1, 7, [1, 1, 1]), (4, 3, [1, 3, 4]), (9, 2, [9, 2, 5]), (25, 4, [1, 25])]
        ):
            if step == 3:  # the first sentence is finished
                keep = torch.tensor([1, 2])
                cache.select(keep)
                lengths, alive = lengths[keep], alive[keep]
            tokens = torch.full((len(alive), new), 17)
            for i, b in enumerate(alive.tolist()):
                tokens[i, : kept[i]] = before[b, lengths[i] : lengths[i] + kept[i]]
            rows = torch.tensor(kept).unsqueeze(1) - 1
            features = one.decoder.decode_step(tokens, lengths, cache, masks, rows)
            assert features.shape == (len(alive), 1, masks, 64)
            lengths = lengths + torch.tensor(kept)
            for i, b in enumerate(alive.tolist()):
                known = before[b : b + 1, : lengths[i]]
                sees_no_bos = bool(flags) and known.size(1) == 1
                alone = row(one, of_sentence(out, b), known, masks, sees_no_bos)
                torch.testing.assert_close(features[i], alone, **EXACT)


@pytest.mark.parametrize("sees_bos", [None, True])
def test_verifying_asks_every_row(sees_bos):
    one, _ = random_bang("--no-nar-sees-bos")
    _, before = inputs([8, 8, 8], seed=5)
    with torch.no_grad():
        out = encoded(one)
        cache = one.decoder.start(out)
        every = torch.arange(5).expand(3, -1)
        first = one.decoder.decode_step(before[:, :5], torch.zeros(3).long(), cache, 3, every, sees_bos=sees_bos)
        lengths = torch.tensor([5, 3, 1])  # of which so many were right
        tokens = torch.stack([before[b, n : n + 3] for b, n in enumerate(lengths.tolist())])
        second = one.decoder.decode_step(tokens, lengths, cache, 2, torch.tensor([[0, 2]] * 3), longest=5)
        for b in range(3):
            for s in range(5):
                sees_no_bos = s == 0 and sees_bos is None
                alone = row(one, of_sentence(out, b), before[b : b + 1, : s + 1], 3, sees_no_bos)
                torch.testing.assert_close(first[b, s], alone[0], **EXACT)
            for r, s in enumerate((0, 2)):
                alone = row(one, of_sentence(out, b), before[b : b + 1, : int(lengths[b]) + s + 1], 2)
                torch.testing.assert_close(second[b, r], alone[0], **EXACT)


@pytest.mark.parametrize("flags", [(), ("--no-nar-sees-bos",)])
def test_masks_do_not_know_how_many_follow(flags):
    one, _ = random_bang(*flags)
    start, none = torch.full((3, 1), EOS), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        out = encoded(one)
        few, many = (
            one.decoder.decode_step(start, none, one.decoder.start(out), masks, none.unsqueeze(1)) for masks in (9, 40)
        )
    torch.testing.assert_close(few, many[:, :, :9], **EXACT)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(kind):
    one, _ = random_bang(dtype=torch.float32)
    start, none = torch.full((3, 1), EOS), torch.zeros(3, dtype=torch.long)
    target, before = inputs(LENGTHS)
    with torch.no_grad():
        out = encoded(one)
        exact = one.decoder.decode_step(start, none, one.decoder.start(out), 3, none.unsqueeze(1))
    with torch.no_grad(), torch.autocast("cpu", kind):
        out = encoded(one)
        half = one.decoder.decode_step(start, none, one.decoder.start(out), 3, none.unsqueeze(1))
        assert (half - exact).abs().max() < 0.2 and half.isfinite().all()
    with torch.autocast("cpu", kind):
        objective = BangObjective(label_smoothing=0.1)
        loss = total(one(SOURCE, SOURCE.ne(PAD).sum(1), before, target=target, objective=objective))
        loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all()
    assert one.decoder.layers[0].ngram_self_attn.in_proj_weight.grad.isfinite().all()
    one.zero_grad()
    with torch.no_grad():
        half = random_bang.__wrapped__(dtype=kind)[0]
        out = encoded(half)
        again = half.decoder.decode_step(start, none, half.decoder.start(out), 3, none.unsqueeze(1))
        assert again.dtype == kind and (again.float() - exact).abs().max() < 0.4


# -- building and loading
# --------------------------------------------------------------------------------------------------


def test_architectures():
    sizes = {"base": (768, 3072, 12, 6), "middle": (1024, 4096, 16, 6), "large": (1024, 4096, 16, 12)}
    for name, (dim, ffn, heads, layers) in sizes.items():
        for arch in ("bang", "bang_ar", "bang_nar", "bang_ar_nar_mixed"):
            args = arguments(arch=f"{arch}_{name}", criterion="bang_loss")
            assert (args.decoder_embed_dim, args.encoder_ffn_embed_dim, args.decoder_attention_heads) == (
                dim,
                ffn,
                heads,
            )
            assert args.encoder_layers == args.decoder_layers == layers and args.activation_dropout == 0.1
            assert (
                args.activation_fn == "gelu" and args.nar_sees_bos and ARCH_MODEL_REGISTRY[f"{arch}_{name}"].generators
            )


def test_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        one, _ = model(
            "--max-source-positions",
            "512",
            "--max-target-positions",
            "512",
            arch="bang_base",
            criterion="bang_loss",
            words=30522 - 5,
        )
    count = sum(p.numel() for p in one.parameters())
    assert round(count / 1e6, 1) == 125.2


def test_it_starts_as_bert():
    one, _ = model(arch="bang_tiny", criterion="bang_loss", words=500)
    layer = one.decoder.layers[0]
    for weight in (
        layer.fc1.weight,
        layer.encoder_attn.q_proj.weight,
        one.encoder.layers[0].self_attn.k_proj.weight,
        one.encoder.embed_tokens.weight,
        one.decoder.ngram_input_embed.weight,
    ):
        assert 0.015 < float(weight.std()) < 0.025
    assert float(layer.ngram_self_attn.in_proj_weight.abs().max()) > 0.13  # Xavier's: uniform up to sqrt(6 / (4 D))
    assert one.encoder.embed_tokens.weight is one.decoder.embed_tokens.weight is one.decoder.output_projection.weight
    assert one.decoder.embed_tokens.weight[PAD].eq(0).all() and layer.fc1.bias.eq(0).all()


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--ngram", "-1"), "--ngram -1: give the number of streams"),
        (
            ("--decoder-normalize-before",),
            "--decoder-normalize-before does not work with --arch bang_tiny: leave it out",
        ),
        (("--decoder-layerdrop", "0.1"), "--decoder-layerdrop does not work"),
        (("--decoder-attention-heads", "5"), "--decoder-embed-dim 64 is no multiple of --decoder-attention-heads 5"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        model(*flags, arch="bang_tiny", criterion="bang_loss")


@pytest.mark.parametrize(
    "words, flags, message",
    [
        (30, (), "the vocabulary has 25 symbols in the checkpoint and 35 here"),
        (
            20,
            ("--max-target-positions", "512"),
            "the decoder has 1024 positions in the checkpoint and 512 here: give --max-target-positions 1024",
        ),
        (
            20,
            ("--max-source-positions", "99"),
            "the encoder has 1024 positions in the checkpoint and 99 here: give --max-source-positions 1024",
        ),
        (
            20,
            ("--encoder-embed-dim", "32", "--decoder-embed-dim", "32"),
            "encoder.embed_tokens.weight is 64 wide in the checkpoint and 32 here",
        ),
    ],
)
def test_a_checkpoint_of_another_shape(words, flags, message):
    state = model(arch="bang_tiny", criterion="bang_loss")[0].state_dict()
    other, _ = model(*flags, arch="bang_tiny", criterion="bang_loss", words=words)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)


def test_a_checkpoint_without_mask_and_one_with_the_releases_names_load():
    one, _ = model(arch="bang_tiny", criterion="bang_loss", seed=2)
    other, _ = model(arch="bang_tiny", criterion="bang_loss", seed=3)
    state = {key: value for key, value in one.state_dict().items() if "output_projection" not in key}
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        state[key] = state[key][:-1]
    other.load_state_dict(state)
    assert other.decoder.layers[1].fc2.weight.equal(one.decoder.layers[1].fc2.weight)
    assert other.decoder.output_projection.weight[:-1].equal(one.decoder.embed_tokens.weight[:-1])


def test_activation_checkpointing_changes_nothing():
    target, before = inputs(LENGTHS)
    gradients = []
    for flags in ((), ("--checkpoint-activations",)):
        one, _ = model(*flags, arch="bang_tiny", criterion="bang_loss")
        total(one.double()(SOURCE, SOURCE.ne(PAD).sum(1), before, target=target)).backward()
        gradients.append([p.grad for p in one.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, **EXACT)


def test_every_parameter_learns():
    one, _ = random_bang.__wrapped__()
    target, before = inputs(LENGTHS)
    total(one(SOURCE, SOURCE.ne(PAD).sum(1), before, target=target)).backward()
    assert all(p.grad is not None for p in one.parameters())


# -- attention
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 2, 1]])
def test_attention_with_a_state_is_that_of_the_whole_and_only_for_who_asks(steps):
    one, _ = random_bang()
    _, before = inputs([7, 7, 7])
    with torch.no_grad():
        out = encoded(one)
        whole = one.decoder(before, encoder_out=out)[1]["attn"][0]
        state, at, parts, order = {}, 0, [], torch.tensor([2, 0])
        with one.decoder.returning_attention():
            for step in steps:
                at += step
                parts.append(one.decoder(before[:, :at], encoder_out=out, incremental_state=state)[1]["attn"][0])
            # then a sentence leaves, and the others change places
            state = {}
            one.decoder(before[:, :4], encoder_out=out, incremental_state=state)
            one.decoder.reorder_incremental_state_scripting(state, order)
            here = one.encoder.reorder_encoder_out(out, order)
            moved = one.decoder(before[order, :5], encoder_out=here, incremental_state=state)[1]["attn"][0]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        torch.testing.assert_close(moved[:, 0], whole[order, 4])
        assert one.decoder(before[:, :1], encoder_out=out, incremental_state={})[1]["attn"] == [None]
        assert not one.decoder.layers[-1].encoder_attn.q_proj._forward_hooks  # nothing stays behind


@pytest.mark.parametrize("masks", [1, 3])
def test_the_verifiers_attention_is_that_of_the_whole(masks):
    one, _ = random_bang()
    _, before = inputs([7, 7, 7])
    with torch.no_grad():
        out = encoded(one)
        whole = one.decoder(before, encoder_out=out)[1]["attn"][0]
        block = BangBlockDecoder(one.decoder)
        block.masks = masks
        cache, zeros = block.start(out), torch.zeros(3, dtype=torch.long)
        first = block(before[:, :3], zeros, 0, 0, 20, cache, weights=True)
        second = block(before[:, 3:], zeros + 3, 3, 3, 20, cache, weights=True)
        torch.testing.assert_close(torch.cat([first[1], second[1]], 1), whole)
        assert block(before[:, :3], zeros, 0, 0, 20, block.start(out))[1] is None
