"""The one attention against fairseq's own with the same weights, and the decoder layer around it."""

import pytest
import torch
from fairseq.models.transformer import TransformerConfig
from fairseq.modules import MultiheadAttention
from tiny import arguments

from nar_plugins.modules.attention import Attention, allowed_keys, pick, training_kernel
from nar_plugins.modules.layers import NarDecoderLayer

D, H = 16, 4
CLOSE = dict(rtol=1e-5, atol=1e-6)


def twins(device, **kind):
    """fairseq's attention and ours, of the same weights."""
    torch.manual_seed(1)
    theirs = MultiheadAttention(D, H, **kind).to(device).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = Attention(D, H, **kind).to(device).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def padding(*lengths, device, width=None):
    positions = torch.arange(width or max(lengths), device=device)
    return positions >= torch.tensor(lengths, device=device).unsqueeze(1)


@pytest.mark.parametrize("lengths", [None, (5, 2, 1), (5, 5, 5)])
def test_self_attention_is_fairseqs(device, lengths):
    theirs, ours = twins(device, self_attention=True)
    x = torch.randn(5, 3, D, device=device)
    mask = None if lengths is None else padding(*lengths, device=device)
    expected, _ = theirs(x, x, x, key_padding_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(x, x, x, key_padding_mask=mask)[0], expected, **CLOSE)


@pytest.mark.parametrize("lengths", [None, (7, 3, 1)])
def test_cross_attention_from_another_width_is_fairseqs(device, lengths):
    theirs, ours = twins(device, kdim=12, vdim=12, encoder_decoder_attention=True)
    x, memory = torch.randn(4, 3, D, device=device), torch.randn(7, 3, 12, device=device)
    mask = None if lengths is None else padding(*lengths, device=device)
    expected, _ = theirs(x, memory, memory, key_padding_mask=mask, static_kv=True, need_weights=False)
    torch.testing.assert_close(ours(x, memory, memory, key_padding_mask=mask)[0], expected, **CLOSE)


def test_what_lies_under_the_padding_does_not_matter(device):
    _, ours = twins(device, self_attention=True)
    x = torch.randn(5, 2, D, device=device)
    mask = padding(5, 3, device=device)
    other = x.clone()
    other[3:, 1] = 100.0
    one, two = (ours(y, y, y, key_padding_mask=mask)[0] for y in (x, other))
    assert torch.equal(one[:3], two[:3])
    assert not torch.equal(one[3:, 1], two[3:, 1])


def test_attend_takes_a_float_bias(device):
    _, ours = twins(device, self_attention=True)
    x = torch.randn(2, 5, D, device=device)
    allowed = torch.rand(2, 1, 5, 5, device=device) < 0.5
    allowed |= torch.eye(5, dtype=torch.bool, device=device)
    bias = torch.zeros(allowed.shape, device=device).masked_fill(~allowed, -float("inf"))
    one, two = (ours.attend(ours.queries(x), *ours.keys_values(x), mask) for mask in (allowed, bias))
    torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("kind, length, fused", [("cpu", 30, False), ("cpu", 512, True), ("cuda", 30, True)])
def test_short_sequences_train_without_the_fused_kernel_of_cpus(kind, length, fused):
    with training_kernel(torch.device(kind), length):
        assert torch.backends.cuda.flash_sdp_enabled() is fused  # the switch has CUDA's name and is every device's
    assert torch.backends.cuda.flash_sdp_enabled()


def test_dropout_is_applied_in_training_only(device):
    torch.manual_seed(1)
    ours = Attention(D, H, dropout=0.5, self_attention=True).to(device)
    x = torch.randn(5, 3, D, device=device)
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize(
    "asked",
    [{"need_weights": True}, {"attn_mask": torch.zeros(3, 3)}, {"incremental_state": {}}, {"need_head_weights": True}],
)
def test_what_it_does_not_serve_is_refused(asked):
    ours = Attention(D, H, self_attention=True)
    x = torch.randn(3, 2, D)
    with pytest.raises(ValueError, match="this attention returns no weights and takes no mask"):
        ours(x, x, x, **asked)


def test_allowed_keys_turns_padding_around():
    assert allowed_keys(None) is None
    assert allowed_keys(torch.tensor([[False, True]])).tolist() == [[[[True, False]]]]


def test_pick_gathers_rows():
    x = torch.arange(12.0).view(2, 3, 2)
    assert pick(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


# -- the decoder's layer -----------------------------------------------------------------------------------------------


def layer(device, *flags):
    """A layer of width 64 with weights that are far from their initialisation."""
    torch.manual_seed(2)
    made = NarDecoderLayer(TransformerConfig.from_namespace(arguments(*flags))).to(device).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made


def batch(device, canvases=1, width=6):
    """Memory of two sentences, the second padded; canvases of them, padded too."""
    torch.manual_seed(3)
    states = torch.randn(2, 4, 64, device=device)
    x = torch.randn(2 * canvases, width, 64, device=device)
    lengths = [6, 3, 5, 2, 4, 1][: 2 * canvases]
    return states, padding(4, 2, device=device), x, padding(*lengths, device=device, width=width)


@pytest.mark.parametrize("flags", [(), ("--decoder-normalize-before",)])
def test_picked_positions_get_what_the_full_computation_gives_them(device, flags):
    made = layer(device, *flags)
    states, source_padding, x, canvas_padding = batch(device, canvases=3)
    arguments = (x, *made.encoder_attn.keys_values(states), allowed_keys(source_padding), allowed_keys(canvas_padding))
    full = made(*arguments)
    picked = torch.tensor([[5, 0], [2, 1], [4, 4], [1, 0], [3, 0], [0, 0]], device=device)
    torch.testing.assert_close(made(*arguments, picked=picked), pick(full, picked), **CLOSE)
    assert full.shape == (6, 6, 64)


@pytest.mark.parametrize("flags", [(), ("--decoder-normalize-before",)])
def test_the_canvases_of_a_sentence_do_not_see_one_another(device, flags):
    made = layer(device, *flags)
    states, source_padding, x, canvas_padding = batch(device, canvases=3)
    keys, values = made.encoder_attn.keys_values(states)
    together = made(x, keys, values, allowed_keys(source_padding), allowed_keys(canvas_padding))
    for row in range(6):
        sentence = row // 3  # sentence-major
        n, s = int((~canvas_padding[row]).sum()), int((~source_padding[sentence]).sum())
        alone = made(x[row : row + 1, :n], *made.encoder_attn.keys_values(states[sentence : sentence + 1, :s]))
        torch.testing.assert_close(together[row : row + 1, :n], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flags", [(), ("--decoder-normalize-before",)])
def test_the_layer_is_fairseqs_decoder_layer_without_its_causal_mask(device, flags):
    from fairseq.modules.transformer_layer import TransformerDecoderLayerBase

    ours = layer(device, *flags)
    theirs = TransformerDecoderLayerBase(TransformerConfig.from_namespace(arguments(*flags))).to(device).eval()
    theirs.load_state_dict(ours.state_dict())  # the names are the same
    states, source_padding, x, canvas_padding = batch(device)
    expected, _, _ = theirs(
        x.transpose(0, 1), states.transpose(0, 1), source_padding, self_attn_padding_mask=canvas_padding
    )
    got = ours(x, *ours.encoder_attn.keys_values(states), allowed_keys(source_padding), allowed_keys(canvas_padding))
    torch.testing.assert_close(got.transpose(0, 1), expected, rtol=1e-4, atol=1e-5)
