"""The model ``nat``: its presets, its canvas and its decoder against a slow twin written from the paper's text."""

import pytest
import torch
from tiny import arguments, model, predictions, total
from torch.nn.functional import layer_norm, linear, relu

from nar_plugins.models.contract import Plan
from nar_plugins.models.nat.positional_attention import not_itself
from nar_plugins.modules import ctc, source_copy
from nar_plugins.modules.losses import TokenObjective

PAD, EOS, MASK = 1, 2, 24
SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 1, 1, 1], [4, 4, 10, 2, 1]])
TARGET = torch.tensor([[11, 12, 13, 2, 1, 1], [14, 14, 14, 14, 14, 2], [2, 1, 1, 1, 1, 1]])
FERTILITIES = torch.tensor([[1, 0, 2, 0, 1], [5, 1, 0, 0, 0], [0, 0, 0, 1, 0]])


def nat(*flags, **kwargs):
    return model(*flags, arch=kwargs.pop("arch", "nat_tiny"), **kwargs)[0]


def logits_of(m, plan, source=SOURCE):
    memory = m.encode(source)
    return m.project(m.decode(m.canvas(memory, plan), memory))


def batch(**extra):
    return dict(src_tokens=SOURCE, src_lengths=SOURCE.ne(PAD).sum(1), target=TARGET, **extra)


# -- architectures
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, wanted",
    [
        ("nat", (512, 2048, 8, 6, 0.1)),
        ("nat_wmt_en_de", (512, 2048, 8, 6, 0.1)),
        ("nat_iwslt_de_en", (512, 1024, 4, 6, 0.3)),
        ("nat_tiny", (64, 128, 4, 2, 0.0)),
    ],
)
def test_a_preset_has_its_sizes_and_its_parts(arch, wanted):
    args = arguments(arch=arch)
    for side in ("encoder", "decoder"):
        got = [getattr(args, f"{side}_{what}") for what in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers")]
        assert (*got, args.dropout) == wanted
    paper = arch != "nat"
    assert (args.positional_attention, args.mask_diagonal, args.layerwise_attention) == (paper,) * 3
    assert not args.width_scaled_attention and args.source_copy == "fertility"


def test_every_part_can_be_switched_off():
    plain = nat(
        "--no-positional-attention", "--no-mask-diagonal", "--no-layerwise-attention", "--source-copy", "uniform"
    )
    names = set(dict(plain.named_parameters()))
    assert not [name for name in names if "positional_attn" in name or "fertility" in name]
    assert "encoder.length_head.weight" in names and plain.generators == ("one_pass",)
    whole = set(dict(nat().named_parameters()))
    assert "encoder.fertility_head.weight" in whole and "encoder.length_head.weight" not in whole
    assert "decoder.layers.1.positional_attn.q_proj.weight" in whole


def test_ctc_has_neither_lengths_nor_fertilities():
    names = set(dict(nat("--ctc").named_parameters()))
    assert not [name for name in names if "length_head" in name or "fertility" in name]


def test_the_attention_scale_of_the_paper_is_a_flag():
    assert nat().decoder.layers[0].self_attn.scaling == 16**-0.5
    scaled = nat("--width-scaled-attention")
    layers = [*scaled.encoder.layers, *scaled.decoder.layers]
    assert all(layer.self_attn.scaling == 64**-0.5 for layer in layers)
    assert scaled.decoder.layers[0].positional_attn.scaling == scaled.decoder.layers[0].encoder_attn.scaling == 64**-0.5


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--ctc", "--source-copy", "fertility"), "--ctc needs no fertilities"),
        (("--ctc", "--upsample", "0"), "--upsample 0"),
        (("--decoder-layers", "1"), "--no-layerwise-attention"),
        (("--no-token-positional-embeddings",), "--positional-attention needs positions"),
        (("--glancing", "often"), "--glancing 'often'"),
        (("--upsample", "3"), "--upsample is for --ctc"),
        (("--length-head", "token"), "--length-head token is for"),
        (("--ctc", "--length-head", "pooled"), "--length-head pooled is for"),
        (("--stop-length-gradient",), "--stop-length-gradient"),
        (("--decoder-embed-dim", "32"), "must be equal"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        nat(*flags)


# -- the decoder
# ---------------------------------------------------------------------------------------------------------


def twin_attention(attention, queries, keys, values, scale, diagonal):
    """One sentence without padding: (T, D), (S, D), (S, D); the softmax written out, head by head."""
    heads = []
    q, k, v = attention.q_proj(queries), attention.k_proj(keys), attention.v_proj(values)
    size = attention.head_dim
    for h in range(attention.num_heads):
        part = slice(h * size, (h + 1) * size)
        logits = q[:, part] @ k[:, part].T * scale
        if diagonal and len(queries) > 1:
            logits = logits - 1e9 * torch.eye(len(queries))
        heads.append(torch.softmax(logits, 1) @ v[:, part])
    return attention.out_proj(torch.cat(heads, 1))


def twin_norm(norm, x):
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def twin_logits(m, source, index, scale):
    """The decoder of Gu et al. 2018 over one sentence: section 3.2, after-norm, layer k on encoder layer k."""
    states = m.encoder(source.unsqueeze(0))["encoder_states"]
    positions = m.decoder.embed_positions(torch.full((1, len(index)), 5))[0]
    x = states[0][index, 0] + positions
    for k, layer in enumerate(m.decoder.layers):
        x = twin_norm(layer.self_attn_layer_norm, x + twin_attention(layer.self_attn, x, x, x, scale, True))
        y = twin_attention(layer.positional_attn, positions, positions, x, scale, True)
        x = twin_norm(layer.positional_attn_layer_norm, x + y)
        top = states[k + 1][:, 0]
        x = twin_norm(layer.encoder_attn_layer_norm, x + twin_attention(layer.encoder_attn, x, top, top, scale, False))
        y = linear(relu(linear(x, layer.fc1.weight, layer.fc1.bias)), layer.fc2.weight, layer.fc2.bias)
        x = twin_norm(layer.final_layer_norm, x + y)
    return x @ m.decoder.output_projection.weight.T


@pytest.mark.parametrize("flags, scale", [((), 0.25), (("--width-scaled-attention",), 0.125)])
def test_the_decoder_is_the_papers_whatever_the_padding(flags, scale):
    m = nat(*flags).eval()
    logits = logits_of(m, Plan(torch.arange(3), fertilities=FERTILITIES))
    for row in range(3):
        index = [j for j, f in enumerate(FERTILITIES[row].tolist()) for _ in range(f)]
        wanted = twin_logits(m, SOURCE[row][SOURCE[row].ne(PAD)], index, scale)
        torch.testing.assert_close(logits[row, : len(index)], wanted, atol=1e-4, rtol=1e-4)


def test_a_position_does_not_see_itself_but_where_it_is_alone():
    padding = torch.tensor([[False, False, False], [False, True, True], [False, False, True]])
    seen = not_itself(padding, torch.zeros(3, 3, 8))[:, 0]
    assert seen[0].tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert seen[1].tolist() == [[True, False, False]] * 3  # one real token: the diagonal is off, padding stays hidden
    assert seen[2, :2].tolist() == [[False, True, False], [True, False, False]]
    assert not_itself(None, torch.zeros(2, 1, 8)).tolist() == [[[[True]]]]
    m = nat().eval()
    alone = logits_of(m, Plan(torch.tensor([0]), fertilities=torch.tensor([[1]])), torch.tensor([[2]]))
    assert alone.shape[:2] == (1, 1) and alone.isfinite().all()


@pytest.mark.parametrize("kind", ["uniform", "soft"])
def test_stretched_canvases(kind):
    m = nat("--source-copy", kind).eval()
    embedded = m.encoder(SOURCE)["encoder_states"][0].transpose(0, 1)
    rows, lengths = torch.tensor([0, 1, 1, 2]), torch.tensor([7, 1, 4, 2])
    canvas = m.canvas(m.encode(SOURCE), Plan(rows, lengths))
    sources = SOURCE.ne(PAD).sum(1)[rows]
    assert canvas.lengths().tolist() == lengths.tolist()
    weights = source_copy.soft_weights(sources, lengths, 5, 7)
    index = source_copy.uniformly(sources, lengths).index
    for row in range(4):
        for t in range(int(lengths[row])):
            hard = embedded[rows[row], index[row, t]]
            soft = sum(weights[row, t, j] * embedded[rows[row], j] for j in range(5))
            torch.testing.assert_close(canvas.inputs[row, t], soft if kind == "soft" else hard)


def test_ctc_copies_every_token_twice():
    m = nat("--ctc", "--upsample", "3").eval()
    canvas = m.canvas(m.encode(SOURCE), Plan(torch.tensor([1, 0])))
    embedded = m.encoder(SOURCE)["encoder_states"][0].transpose(0, 1)
    assert canvas.lengths().tolist() == [6, 15]
    assert torch.equal(canvas.inputs[0, :6], embedded[1, [0, 0, 0, 1, 1, 1]])


# -- training
# ------------------------------------------------------------------------------------------------------------


def test_words_and_fertilities_are_the_cross_entropies():
    m = nat().eval()
    parts = m(**batch(fertilities=FERTILITIES))
    assert int(parts["words"].count) == 4 + 6 + 1 and int(parts["words"].skipped) == 0
    lprobs = logits_of(m, Plan(torch.arange(3), fertilities=FERTILITIES)).log_softmax(-1)
    real = [(b, t) for b in range(3) for t in range(6) if TARGET[b, t] != PAD]
    assert float(parts["words"].loss) == pytest.approx(
        -sum(float(lprobs[b, t, TARGET[b, t]]) for b, t in real), rel=1e-4
    )
    states = m.encoder(SOURCE)["encoder_out"][0].transpose(0, 1)
    scores = linear(states, m.encoder.fertility_head.weight, m.encoder.fertility_head.bias).log_softmax(-1)
    words = [(b, j) for b, n in enumerate((4, 1, 3)) for j in range(n)]  # </s> makes </s>: nothing to predict
    wanted = -sum(float(scores[b, j, FERTILITIES[b, j]]) for b, j in words)
    assert float(parts["fertility"].loss) == pytest.approx(wanted, rel=1e-4) and int(parts["fertility"].count) == 8


def test_a_fertility_above_49_trains_the_last_class_and_keeps_its_expansion():
    m = nat().eval()
    target = torch.cat([torch.full((1, 60), 7), torch.tensor([[2]])], 1)
    fertilities = torch.tensor([[60, 1]])
    parts = m(torch.tensor([[5, 2]]), torch.tensor([2]), target, fertilities)
    assert int(parts["words"].count) == 61
    lprobs = m.fertility_lprobs(m.encode(torch.tensor([[5, 2]])))
    assert float(parts["fertility"].loss) == pytest.approx(-float(lprobs[0, 0, 49]))


def test_an_empty_source_is_skipped_and_counted():
    m = nat().eval()
    source = torch.tensor([[5, 2], [2, 1]])
    given = {"src_tokens": source, "src_lengths": torch.tensor([2, 1]), "fertilities": torch.tensor([[1, 1], [3, 0]])}
    parts, ((_, target, picked),) = predictions(m, target=torch.tensor([[7, 2, 1], [8, 9, 2]]), **given)
    assert target[picked].tolist() == [7, 2]
    assert int(parts["words"].skipped) == 1 and int(parts["fertility"].count) == 1


def test_without_fertilities_the_message_names_the_command():
    with pytest.raises(ValueError, match="run nar-align"):
        nat()(**batch())


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--source-copy", "uniform"),
        ("--source-copy", "soft"),
        ("--ctc",),
        ("--ctc", "--encoder-normalize-before"),
        ("--ctc", "--glancing", "0.5"),
        ("--share-all-embeddings",),
        ("--no-layerwise-attention", "--no-positional-attention"),
    ],
)
def test_every_trained_parameter_has_a_finite_gradient(flags):
    m = nat(*flags)
    m.train()
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": SOURCE}}
    extra = {"fertilities": FERTILITIES} if m.needs_fertilities else {}
    total(m(**batch(**m.noise(sample, 1, 7), **extra))).backward()
    without = [name for name, p in m.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # PyTorch's DDP would wait for them
    assert all(p.grad.isfinite().all() for p in m.parameters() if p.requires_grad)


def test_layers_of_a_pre_norm_encoder_are_normed_before_they_are_attended_to():
    m = nat("--encoder-normalize-before").eval()
    out = m.encoder(SOURCE)
    assert torch.equal(m.decoder.attended_states(out)[-1], out["encoder_out"][0])
    assert float(m.decoder.attended_states(out)[0].mean(-1).abs().max()) < 1e-5  # of a norm without bias yet


def test_the_copies_of_the_source_are_dropped_out_once():
    m = nat("--dropout", "0.5")
    m.train()
    copied = m.canvas(m.encode(SOURCE), Plan(torch.arange(3), fertilities=FERTILITIES)).inputs
    assert (
        float(copied[0, :4].eq(0).float().mean()) < 0.05
    )  # only where a sinusoid is 0; the decoder drops half of them


def test_both_passes_of_glancing_have_the_same_dropout():
    m = nat("--source-copy", "uniform", "--glancing", "0", "--dropout", "0.5")
    m.train()
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": SOURCE}}
    seen = []
    through, m.decoder.forward = m.decoder.forward, lambda *a: seen.append(through(*a)) or seen[-1]
    m(**batch(**m.noise(sample, 1, 7)))
    assert len(seen) == 2 and torch.equal(*seen)  # nothing is revealed, so nothing else could differ
    m(**batch(**m.noise(sample, 1, 7)))
    assert not torch.equal(seen[0], seen[2])


def test_ctc_with_glancing_takes_a_batch_padded_beyond_its_longest_sentence(monkeypatch):
    seen, loss = [], ctc.ctc_loss
    monkeypatch.setattr(ctc, "ctc_loss", lambda lprobs, *given: seen.append(lprobs) or loss(lprobs, *given))
    m = nat("--ctc", "--glancing", "0.5")
    m.train()
    wide = torch.nn.functional.pad(SOURCE, (0, 3), value=PAD)
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": wide}}
    torch.manual_seed(3)
    m(wide, SOURCE.ne(PAD).sum(1), TARGET, **m.noise(sample, 1, 7))
    m(SOURCE, SOURCE.ne(PAD).sum(1), TARGET, **m.noise({**sample, "net_input": {"src_tokens": SOURCE}}, 1, 7))
    torch.testing.assert_close(*seen, atol=1e-4, rtol=1e-4)


def test_learned_positions_bound_the_source_of_ctc():
    m = nat("--ctc", "--decoder-learned-pos", "--max-target-positions", "30", "--max-source-positions", "100")
    assert m.max_positions() == (15, 30)
    assert nat("--ctc", "--max-target-positions", "30").max_positions()[0] == 1024


@pytest.mark.parametrize(
    "flags", [("--source-copy", "uniform"), ("--source-copy", "fertility"), ("--ctc", "--upsample", "3")]
)
def test_glancing_reveals_by_what_the_first_pass_got_wrong(flags):
    m = nat(*flags, "--glancing", "0.5", "--dropout", "0.1")
    m.train()
    m.set_num_updates(7)
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": SOURCE}}
    noise = m.noise(sample, 1, 7)
    extra = {"fertilities": FERTILITIES} if m.needs_fertilities else {}
    seen, shown = [], []
    through, m.decoder.forward = m.decoder.forward, lambda *a: seen.append((torch.is_grad_enabled(), a)) or through(*a)
    reveal, m.with_revealed = m.with_revealed, lambda *a: shown.append(a) or reveal(*a)
    torch.manual_seed(4)
    parts, predicted = predictions(m, **batch(**noise, **extra))
    (first_grad, first), (second_grad, second) = seen
    ((canvas, revealed, gold),) = shown
    assert (first_grad, second_grad) == (False, True) and first[0] is canvas
    assert (second[0].inputs != canvas.inputs).any(-1)[revealed].all()
    assert 0 < int(revealed.sum()) < int(canvas.real().sum())
    if "--ctc" in flags:
        path = gold[0, :15]
        kept = [int(x) for i, x in enumerate(path) if x != MASK and (i == 0 or path[i - 1] != x)]
        assert kept == [11, 12, 13, 2]  # the alignment says the target
        assert parts["words"].loss.isfinite()
    else:
        assert torch.equal(gold, TARGET)
        ((_, _, picked),) = predicted
        assert int(picked.sum()) == int(TARGET.ne(PAD).sum()) - int(revealed.sum())
        assert not (picked & revealed).any()
    m.eval()
    seen.clear()
    m(**batch(**noise, **extra))
    assert len(seen) == 1  # no glancing in validation


def test_what_is_revealed_is_seen():
    m = nat("--source-copy", "uniform").eval()
    memory = m.encode(SOURCE)
    canvas = m.canvas(memory, Plan(torch.arange(3), TARGET.ne(PAD).sum(1)))

    def logits(revealed, gold):
        return m.project(m.decode(m.with_revealed(canvas, revealed, gold), memory))

    nothing = torch.zeros(TARGET.shape, dtype=torch.bool)
    torch.testing.assert_close(logits(nothing, TARGET), m.project(m.decode(canvas, memory)))
    shown = nothing.clone()
    shown[0, 1] = True
    other = TARGET.clone()
    other[0, 1] = 20
    assert not torch.allclose(logits(shown, TARGET)[0], logits(shown, other)[0])
    other = TARGET.clone()
    other[0, 2] = 20  # hidden
    torch.testing.assert_close(logits(shown, TARGET), logits(shown, other))


def test_glancing_noise_depends_on_the_update_and_the_sentence_alone():
    m = nat("--source-copy", "uniform", "--glancing", "0.5")
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": SOURCE}}
    draws = m.noise(sample, 1, 7)["reveal_draws"]
    turned = {"target": TARGET.flip(0), "id": torch.tensor([2, 1, 3]), "net_input": {"src_tokens": SOURCE.flip(0)}}
    assert torch.equal(m.noise(turned, 1, 7)["reveal_draws"].flip(0), draws)
    assert not torch.equal(m.noise(sample, 1, 8)["reveal_draws"], draws)
    assert nat("--source-copy", "uniform").noise(sample, 1, 7) == {}


def test_ctc_refuses_label_smoothing():
    m = nat("--ctc")
    with pytest.raises(ValueError, match="--label-smoothing has no meaning"):
        m(**batch(objective=TokenObjective(label_smoothing=0.1)))


def test_ctc_skips_and_counts_a_target_that_is_too_long():
    m = nat("--ctc")
    words = m(**batch())["words"]
    assert (
        int(words.skipped) == 1 and words.loss.isfinite()
    )  # five equal words ask for nine places, two tokens give four
    assert int(words.count) == 4 + 1


def test_the_length_loss_of_a_sentence_shrinks_with_what_is_revealed_of_it():
    m = nat("--source-copy", "uniform", "--glancing", "0.6")
    m.train()
    sample = {"target": TARGET, "id": torch.tensor([3, 1, 2]), "net_input": {"src_tokens": SOURCE}}
    parts, ((_, _, picked),) = predictions(m, **batch(**m.noise(sample, 1, 7)))
    lengths = TARGET.ne(PAD).sum(1)
    shares = picked.sum(1) / lengths
    assert shares.unique().numel() > 1 and float(shares.min()) < 1
    lprobs = m.length_lprobs(m.encode(SOURCE))
    wanted = -(lprobs.gather(1, lengths.unsqueeze(1)).squeeze(1) * shares).sum()
    torch.testing.assert_close(parts["length"].loss, wanted)


def test_the_encoder_starts_from_an_ar_teacher(tmp_path):
    from test_cmlm import AS_TRANSFORMER_TINY, transformer_checkpoint

    path = tmp_path / "ar.pt"
    teacher = transformer_checkpoint(path, words=20)
    m, task = model("--init-encoder-from", str(path), *AS_TRANSFORMER_TINY, arch="nat_tiny")
    for name, weight in teacher.encoder.state_dict().items():
        if name.startswith("layers."):
            assert torch.equal(weight, m.encoder.state_dict()[name]), name
    source = torch.tensor([[5, 6, 2]])
    torch.testing.assert_close(
        m.eval().encoder(source)["encoder_out"][0], teacher.eval().encoder(source, torch.tensor([3]))["encoder_out"][0]
    )


def test_the_decoder_starts_from_an_ar_teacher_but_for_its_own_parts(tmp_path):
    from test_cmlm import AS_TRANSFORMER_TINY, transformer_checkpoint

    path = tmp_path / "ar.pt"
    teacher = transformer_checkpoint(path, words=20)
    m, _ = model("--init-decoder-from", str(path), *AS_TRANSFORMER_TINY, arch="nat_tiny")
    own = m.decoder.state_dict()
    for name, weight in teacher.decoder.state_dict().items():
        if name.startswith("layers."):
            assert torch.equal(weight, own[name]), name
    assert own["layers.0.positional_attn.q_proj.weight"].abs().sum() > 0
