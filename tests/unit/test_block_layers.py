"""The fast form of a decoder's layers: it computes what the plain form does, and serves only where it may."""

import copy

import pytest
import torch
from blockwise_twin import PAD, WORDS, blockwise, greedy, random_models
from conftest import source_batch
from test_blockwise_generator import SOURCE, decode, texts, with_heads
from tiny import model

from nar_plugins.modules.block_decoder import BlockCache, BlockDecoder
from nar_plugins.modules.fast.block_layers import block_layers
from nar_plugins.modules.fast.encoder_layers import encoder_layers
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.prepare import prepare_for_decoding

FORMS = {
    "post-norm": (),
    "pre-norm": ("--encoder-normalize-before", "--decoder-normalize-before"),
    "learned": ("--decoder-learned-pos", "--layernorm-embedding", "--activation-fn", "gelu"),
    "tied": ("--share-all-embeddings", "--decoder-attention-heads", "8"),
    "projected": ("--decoder-output-dim", "48", "--no-scale-embedding"),
}


def prepared(one, dtype=torch.float32):
    made = prepare_for_decoding(one, str(dtype).replace("torch.", ""))
    made.update(dtype)
    return made.model


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[7], [5, 9, 3]])
def test_the_fast_form_computes_what_the_plain_one_does(form, lengths):
    (one,), _ = random_models(*FORMS[form])
    source = source_batch(lengths, WORDS)
    plain, fast = BlockDecoder(one.decoder), BlockDecoder(prepared(one).decoder)
    encoded = one.encoder(source, src_lengths=None)
    caches = [decoder.start(encoded) for decoder in (plain, fast)]
    assert plain.fast is None and fast.fast is not None
    torch.manual_seed(5)
    cached = torch.zeros(len(lengths), dtype=torch.long)
    for new in (1, 3, 1, 2, 40):  # 40: the cache grows
        tokens = torch.randint(4, WORDS, (len(lengths), new))
        bounds = int(cached.min()), int(cached.max())
        outputs = [
            decoder(tokens, cached, *bounds, 60, cache, weights=True) for decoder, cache in zip((plain, fast), caches)
        ]
        for mine, theirs in zip(*outputs):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)
        logits = [decoder.logits(features) for decoder, (features, _) in zip((plain, fast), outputs)]
        torch.testing.assert_close(*logits, atol=2e-3, rtol=1e-4)
        cached = cached + torch.arange(len(lengths)) % new + 1  # not all of the block is kept
    for cache in caches:
        cache.select(torch.tensor([len(lengths) - 1]))
    last = [
        decoder(tokens[-1:], cached[-1:], *[int(cached[-1])] * 2, 90, cache)[0]
        for decoder, cache in zip((plain, fast), caches)
    ]
    torch.testing.assert_close(*last, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("head", ["full", "sequential"])
def test_a_learned_first_head_is_in_the_logits(head):
    one, _ = with_heads("--block-head", head)
    decoder = prepared(one).block_decoder()
    decoder.start(one.encoder(SOURCE, src_lengths=None))
    features = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    assert decoder.fast is not None
    torch.testing.assert_close(decoder.logits(features), one.decoder.output_layer(features), atol=1e-4, rtol=1e-4)


def fast_of(model) -> object:
    return block_layers(model.decoder)


def test_the_fast_form_serves_prepared_models_in_float32_on_a_cpu_only():
    (one,), _ = random_models("--dropout", "0.1", "--attention-dropout", "0.1")
    made = prepared(one)
    assert fast_of(made) is None  # gradients
    with torch.no_grad():
        assert fast_of(one) is None and fast_of(made) is not None
        with torch.autocast("cpu", torch.bfloat16):
            assert fast_of(made) is None
        made.decoder.layers[0].self_attn.dropout_module.apply_during_inference = True
        assert fast_of(made) is None
        made.decoder.layers[0].self_attn.dropout_module.apply_during_inference = False
        handle = made.decoder.layers[1].fc1.register_forward_hook(lambda *parts: None)
        assert fast_of(made) is None
        handle.remove()
        assert fast_of(made) is not None
        if int8_lacks(torch.device("cpu")) is None:
            assert fast_of(prepared(one, torch.int8)) is None
        assert fast_of(prepared(copy.deepcopy(one).double())) is None


@torch.no_grad()
def test_a_hook_of_a_users_is_called():
    (one,), task = random_models(seed=5)
    seen = []
    gen = blockwise([one], task, max_len_b=9)
    handle = one.decoder.layers[0].fc2.register_forward_hook(lambda module, inputs, out: seen.append(out.shape))
    before = texts(greedy([one], task, SOURCE, max_len_b=9))
    del seen[:]
    assert texts(decode(gen)) == before and len(seen) == gen.statistics.decoder_calls
    handle.remove()
    assert texts(decode(gen)) == before and len(seen) < gen.statistics.decoder_calls


@torch.no_grad()
@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_changed_weights_are_seen(change):
    (one,), task = random_models(seed=6)
    gen = blockwise([one], task, max_len_b=16)
    before = decode(gen)
    fast = gen.decoders[0].fast
    assert texts(decode(gen)) == texts(before) and gen.decoders[0].fast is fast  # made once
    layer, kept = one.decoder.layers[0], {name: value.clone() for name, value in one.state_dict().items()}
    for module, name in ((layer.fc1, "weight"), (layer.self_attn.k_proj, "weight"), (layer.final_layer_norm, "bias")):
        changed = getattr(module, name).flip(0)
        if change == "in place":
            getattr(module, name).copy_(changed)
        else:
            setattr(module, name, torch.nn.Parameter(changed))
    after = texts(decode(gen))
    assert after == texts(greedy([one], task, SOURCE, max_len_b=16)) != texts(before)
    one.load_state_dict(kept)
    assert texts(decode(gen)) == texts(before)


@torch.no_grad()
def test_a_batch_keeps_the_form_that_it_began_with():
    (one,), _ = random_models()
    decoder = BlockDecoder(prepared(one).decoder)
    encoded = one.encoder(SOURCE, src_lengths=None)
    first = decoder.start(encoded)
    with torch.autocast("cpu", torch.bfloat16):
        decoder.start(encoded)
    zeros = torch.zeros(len(SOURCE), dtype=torch.long)
    features, _ = decoder(SOURCE[:, :2], zeros, 0, 0, 20, first)
    assert decoder.fast is None and first.fast is not None
    plain = BlockCache(first.memory)
    torch.testing.assert_close(features, decoder(SOURCE[:, :2], zeros, 0, 0, 20, plain)[0], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[7], [5, 9, 1], [40, 33, 28]])
def test_the_fast_encoder_computes_what_fairseqs_does(form, lengths):
    (one,), _ = random_models(*FORMS[form])
    source = source_batch(lengths, WORDS)
    fast, wanted = encoder_layers(prepared(one).encoder)(source), one.encoder(source, src_lengths=None)
    assert set(fast) >= {name for name, value in wanted.items() if value}
    for name, value in fast.items():
        assert len(value) == len(wanted[name])
        for mine, theirs in zip(value, wanted[name]):
            if name == "encoder_out":  # what padding holds is not read
                mine, theirs = (states.transpose(0, 1)[source.ne(PAD)] for states in (mine, theirs))
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_fast_encoder_serves_fairseqs_own_only():
    (one,), _ = random_models("--dropout", "0.1", "--attention-dropout", "0.1")
    made = prepared(one)
    assert encoder_layers(made.encoder) is None  # gradients
    with torch.no_grad():
        fast = encoder_layers(made.encoder)
        assert fast is not None and encoder_layers(made.encoder, fast) is fast and encoder_layers(one.encoder) is None
        handle = made.encoder.layers[0].self_attn.register_forward_hook(lambda *parts: None)
        assert encoder_layers(made.encoder) is None
        handle.remove()
        made.encoder.layers[0].activation_dropout_module.p = 0.1
        made.encoder.layers[0].activation_dropout_module.apply_during_inference = True
        assert encoder_layers(made.encoder) is None
        made.encoder.layers[0].activation_dropout_module.apply_during_inference = False
        assert encoder_layers(made.encoder) is not None
        bang, _ = model(arch="bang_tiny", criterion="cross_entropy")
        assert encoder_layers(prepared(bang.eval()).encoder) is None
