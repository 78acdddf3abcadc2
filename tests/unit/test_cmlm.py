"""The model ``cmlm``: its presets, its initialisation, its length head, and starting from an AR checkpoint."""

import math
from argparse import Namespace

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from tiny import arguments, dictionary, model

from nar_plugins.models.contract import Plan
from nar_plugins.modules.length_head import LengthHead

MASK = 24  # the last of tiny's 25 symbols

# dim, ffn, heads, layers, dropout: Mask-Predict's README and bert_seq2seq.py, fairseq's transformer_iwslt_de_en, design
PRESETS = {
    "cmlm_wmt_en_de": (512, 2048, 8, 6, 0.3),
    "cmlm_wmt_en_ro": (512, 2048, 8, 6, 0.3),
    "cmlm_iwslt_de_en": (512, 1024, 4, 6, 0.3),
    "cmlm_tiny": (64, 128, 4, 2, 0.0),
    "cmlm": (512, 2048, 8, 6, 0.1),  # fairseq's transformer
}


def transformer_checkpoint(path, *flags: str, words: int = 20):
    """A stock AR transformer without <mask> (as fairseq's task translation trains it), saved; its model."""
    args = arguments(*flags, arch="transformer_tiny", criterion="cross_entropy")
    d = dictionary(words)
    torch.manual_seed(5)
    ar = TransformerModel.build_model(args, Namespace(source_dictionary=d, target_dictionary=d))
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]
    torch.save(
        {
            "args": args,
            "cfg": None,
            "model": ar.state_dict(),
            "optimizer_history": history,
            "task_state": {},
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        },
        path,
    )
    return ar


# transformer_tiny: width 64, feed-forward 64, 2 heads, 2 + 2 layers
SIDES = ("encoder", "decoder")
AS_TRANSFORMER_TINY = [f"--{side}-{what}" for side in SIDES for what in ("ffn-embed-dim=64", "attention-heads=2")]


# -- architectures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", PRESETS)
def test_a_preset_has_its_sizes(arch):
    args = arguments(arch=arch)
    for side in ("encoder", "decoder"):
        got = [getattr(args, f"{side}_{what}") for what in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers")]
        assert (*got, args.dropout) == PRESETS[arch]


@pytest.mark.parametrize("arch", [name for name in PRESETS if name != "cmlm"])
def test_the_named_presets_are_in_the_releases_form(arch):
    args = arguments(arch=arch)
    assert args.encoder_learned_pos and args.decoder_learned_pos and args.no_scale_embedding and args.bert_init
    assert (args.length_head, args.activation_fn, args.layer_norm_eps) == ("token", "gelu", 1e-12)
    assert not args.encoder_normalize_before and not args.decoder_normalize_before


def test_the_plain_architecture_is_in_fairseqs_form():
    args = arguments(arch="cmlm")
    assert not (args.encoder_learned_pos or args.decoder_learned_pos or args.no_scale_embedding)
    assert not getattr(args, "bert_init", False)
    assert (args.length_head, args.activation_fn) == ("pooled", "relu")
    small = [f"--{side}-{what}" for side in SIDES for what in ("layers=1", "embed-dim=64")]
    cmlm, _ = model(*small, arch="cmlm")
    assert isinstance(cmlm.encoder.embed_positions, SinusoidalPositionalEmbedding)
    assert cmlm.encoder.embed_scale == cmlm.decoder.embed_scale == 8
    assert cmlm.encoder.length_head.form == "pooled"
    assert cmlm.encoder.layers[0].final_layer_norm.eps == 1e-5


def test_the_official_form_can_be_put_together_from_flags():
    flags = (
        "--encoder-learned-pos --decoder-learned-pos --no-scale-embedding --bert-init --length-head token "
        "--activation-fn gelu --layer-norm-eps 1e-12 --encoder-embed-dim 64 --encoder-ffn-embed-dim 128 "
        "--encoder-attention-heads 4 --encoder-layers 2 --decoder-embed-dim 64 --decoder-ffn-embed-dim 128 "
        "--decoder-attention-heads 4 --decoder-layers 2 --dropout 0"
    ).split()
    plain, _ = model(*flags, arch="cmlm")
    tiny, _ = model()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in tiny.state_dict().items()}
    assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in plain.state_dict().items())  # the same draws, too
    source = torch.tensor([[5, 6, 2], [7, 2, 1]])
    outs = [m.eval().encoder(source) for m in (plain, tiny)]
    assert torch.equal(outs[0]["encoder_out"][0], outs[1]["encoder_out"][0])
    assert torch.equal(outs[0]["length_state"][0], outs[1]["length_state"][0])


def test_the_official_form_reaches_the_modules():
    cmlm, _ = model()
    for side in (cmlm.encoder, cmlm.decoder):
        assert isinstance(side.embed_positions, LearnedPositionalEmbedding)
        assert side.embed_scale == 1
        gelu = side.layers[0].activation_fn(torch.tensor(1.0))
        assert float(gelu) == pytest.approx(0.8413447, abs=1e-6)  # 1 * Phi(1)
    norms = [m for m in cmlm.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-12} and len(norms) == 2 * 2 + 2 * 3  # layers only: no norm of embeddings


@pytest.mark.parametrize("flag", ["--decoder-layerdrop=0.1", "--no-cross-attention", "--adaptive-input"])
def test_a_flag_that_a_parallel_decoder_cannot_serve_is_refused_by_name(flag):
    with pytest.raises(ValueError, match=f"{flag.split('=')[0]} does not work with --arch cmlm_tiny"):
        model(flag)


# -- initialisation ----------------------------------------------------------------------------------------------------


def test_bert_initialisation_is_normal_with_deviation_002_and_zero_biases():
    cmlm, _ = model("--share-all-embeddings", words=200)
    tables = [cmlm.encoder.embed_tokens.weight, cmlm.encoder.length_head.weight]
    tables += [side.embed_positions.weight for side in (cmlm.encoder, cmlm.decoder)]
    for layer in [*cmlm.encoder.layers, *cmlm.decoder.layers]:
        tables += [layer.fc1.weight, layer.fc2.weight, layer.self_attn.out_proj.weight]
    for table in tables:
        deviation = 0.02 / math.sqrt(2 * table.numel())  # of an estimate of the deviation
        assert float(table.std()) == pytest.approx(0.02, abs=5 * deviation)
        assert abs(float(table.mean())) < 5 * 0.02 / math.sqrt(table.numel())
        assert float(table.abs().max()) > 0.05  # a normal's tail; a uniform of this deviation ends at 0.035
    for name, p in cmlm.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        if "layer_norm.weight" in name or "layernorm_embedding.weight" in name:
            assert torch.equal(p, torch.ones_like(p)), name


def test_query_key_and_value_are_xaviers_for_the_releases_fused_matrix():
    cmlm, _ = model()
    bound = math.sqrt(6 / (64 + 3 * 64))  # xavier_uniform of in_proj_weight (3D, D), D = 64
    for layer in [*cmlm.encoder.layers, *cmlm.decoder.layers]:
        for attention in {layer.self_attn, getattr(layer, "encoder_attn", layer.self_attn)}:
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                w = projection.weight
                assert 0.99 * bound < float(w.abs().max()) <= bound
                assert float(w.std()) == pytest.approx(bound / math.sqrt(3), rel=0.04)
                assert not projection.bias.any()


def test_rows_of_padding_are_drawn_like_the_others():
    cmlm, _ = model()
    for side in (cmlm.encoder, cmlm.decoder):
        for table in (side.embed_tokens, side.embed_positions):
            assert float(table.weight[1].std()) == pytest.approx(0.02, rel=0.4)  # row 1 is <pad>


def test_padding_does_not_reach_the_other_positions():
    cmlm, _ = model()
    cmlm.eval()
    sources = torch.tensor([[5, 6, 2]]), torch.tensor([[5, 6, 2, 1, 1], [5, 6, 7, 8, 2]])
    alone, padded = (cmlm.encoder(source)["encoder_out"][0] for source in sources)
    torch.testing.assert_close(padded[:3, :1], alone, rtol=1e-5, atol=1e-6)
    alone, padded = (cmlm.length_lprobs(cmlm.encode(source)) for source in sources)
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


# -- the length --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, classes", [((), 1025), (("--max-target-positions", "50"), 51)])
def test_length_classes_follow_the_maximum_target_length(flags, classes):
    cmlm, _ = model(*flags)
    lprobs = cmlm.length_lprobs(cmlm.encode(torch.tensor([[5, 2]])))
    assert lprobs.shape == (1, classes)
    assert lprobs[0, 0] == -float("inf")
    assert float(lprobs.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("form", ["token", "pooled"])
def test_the_longest_target_can_be_trained_and_predicted(form):
    cmlm, _ = model("--max-target-positions", "6", "--length-head", form)
    target = torch.tensor([[4, 5, 6, 7, 8, 2]])
    parts = cmlm(torch.tensor([[5, 2]]), torch.tensor([2]), torch.full_like(target, MASK), target)
    loss = parts["length"].loss
    loss.backward()
    assert loss.isfinite() and cmlm.encoder.length_head.weight.grad.abs().sum() > 0


def test_the_length_head_compares_a_state_with_its_rows_and_never_says_zero():
    head = LengthHead(4, 2, "pooled")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    got = head(torch.tensor([[math.log(2), math.log(5)]])).exp()
    torch.testing.assert_close(got, torch.tensor([[0, 1 / 8, 2 / 8, 5 / 8]]))  # exp(state . row) = 1, 2, 5


def test_pooling_is_the_mean_of_the_real_positions():
    head = LengthHead(4, 1, "pooled")
    states = torch.tensor([[[1.0], [10.0]], [[2.0], [50.0]], [[6.0], [50.0]]])  # (S, B, D)
    padding = torch.tensor([[False, False, False], [False, True, True]])
    assert head.pool(states, padding).tolist() == [[3.0], [10.0]]


@pytest.mark.parametrize("flags, reaches", [((), True), (("--stop-length-gradient",), False)])
def test_the_length_loss_trains_the_encoder_unless_stopped(flags, reaches):
    cmlm, _ = model(*flags)
    cmlm.length_lprobs(cmlm.encode(torch.tensor([[5, 6, 2]])))[0, 3].backward()
    grad = cmlm.encoder.layers[0].fc1.weight.grad
    assert (grad is not None and bool(grad.any())) is reaches
    assert cmlm.encoder.length_head.weight.grad.any()


def test_a_blank_canvas_is_masked_up_to_each_length():
    cmlm, _ = model()
    memory = cmlm.encode(torch.tensor([[5, 2], [6, 2]]))
    canvas = cmlm.canvas(memory, Plan(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 1, 2])))
    assert canvas.lengths().tolist() == [2, 3, 1, 2]
    assert canvas.inputs.tolist() == [[MASK, MASK, 1], [MASK, MASK, MASK], [MASK, 1, 1], [MASK, MASK, 1]]


# -- starting from an AR checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_starts_from_an_ar_checkpoint_without_a_mask_row(tmp_path, side):
    ar = transformer_checkpoint(tmp_path / "ar.pt")
    cmlm, _ = model(*AS_TRANSFORMER_TINY, f"--init-{side}-from", str(tmp_path / "ar.pt"))
    fresh, _ = model(*AS_TRANSFORMER_TINY)
    mine, theirs, other = ({k: v for k, v in getattr(m, side).state_dict().items()} for m in (cmlm, ar, fresh))
    layers = [k for k in theirs if k.startswith("layers.")]
    assert layers and all(torch.equal(mine[k], theirs[k]) for k in layers)
    assert torch.equal(mine["embed_tokens.weight"][:MASK], theirs["embed_tokens.weight"])
    assert torch.equal(mine["embed_tokens.weight"][MASK], other["embed_tokens.weight"][MASK])
    # learned here, sinusoidal there
    assert torch.equal(mine["embed_positions.weight"], other["embed_positions.weight"])
    opposite = "decoder" if side == "encoder" else "encoder"
    for k, v in getattr(cmlm, opposite).state_dict().items():
        assert torch.equal(v, getattr(fresh, opposite).state_dict()[k]), k
    if side == "decoder":
        assert torch.equal(mine["output_projection.weight"][:MASK], theirs["output_projection.weight"])


def test_both_sides_start_from_one_checkpoint_with_shared_embeddings(tmp_path):
    ar = transformer_checkpoint(tmp_path / "ar.pt", "--share-all-embeddings")
    path = str(tmp_path / "ar.pt")
    start = ("--init-encoder-from", path, "--init-decoder-from", path)
    cmlm, _ = model(*AS_TRANSFORMER_TINY, "--share-all-embeddings", *start)
    table = cmlm.encoder.embed_tokens.weight
    assert cmlm.decoder.embed_tokens.weight is table and cmlm.decoder.output_projection.weight is table
    assert torch.equal(table[:MASK], ar.encoder.embed_tokens.weight)


def test_an_encoder_started_from_an_ar_model_in_the_same_form_gives_its_states(tmp_path):
    # fairseq's form is the AR transformer's own: sinusoidal positions, ReLU, scaled embeddings
    ar = transformer_checkpoint(tmp_path / "ar.pt").eval()
    sizes = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("embed-dim=64", "layers=2")]
    cmlm, _ = model(*AS_TRANSFORMER_TINY, *sizes, "--init-encoder-from", str(tmp_path / "ar.pt"), arch="cmlm")
    source = torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]])
    real = source.ne(1).T
    expected = ar.encoder(source, source.ne(1).sum(1))["encoder_out"][0]
    got = cmlm.eval().encoder(source)["encoder_out"][0]
    torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flags, key",
    [
        (["--encoder-ffn-embed-dim=128"], r"encoder.layers.0.fc1.weight is \(64, 64\), this model has \(128, 64\)"),
        ([*AS_TRANSFORMER_TINY, "--encoder-layers=3"], r"encoder.layers.2.\S+ is absent"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused_naming_the_first_that_differs(tmp_path, flags, key):
    transformer_checkpoint(tmp_path / "ar.pt")
    with pytest.raises(ValueError, match=f"--init-encoder-from {tmp_path}/ar.pt: {key}"):
        model(*flags, "--init-encoder-from", str(tmp_path / "ar.pt"))


def test_a_checkpoint_with_another_vocabulary_is_refused(tmp_path):
    transformer_checkpoint(tmp_path / "ar.pt", words=15)
    with pytest.raises(ValueError, match=r"encoder.embed_tokens.weight is \(19, 64\), this model has \(25, 64\)"):
        model(*AS_TRANSFORMER_TINY, "--init-encoder-from", str(tmp_path / "ar.pt"))


def test_a_start_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*nothing.pt"):
        model("--init-encoder-from", str(tmp_path / "nothing.pt"))


def test_a_model_built_for_a_checkpoint_does_not_read_the_start_again(tmp_path):
    _, task = model()
    args = arguments("--init-encoder-from", str(tmp_path / "deleted-since.pt"))
    task.build_model(args, from_checkpoint=True)


def test_an_ar_checkpoint_in_fairseqs_form_loads_strictly_as_with_finetune_from_model(tmp_path):
    ar = transformer_checkpoint(tmp_path / "ar.pt")
    sizes = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("embed-dim=64", "layers=2")]
    cmlm, _ = model(*AS_TRANSFORMER_TINY, *sizes, arch="cmlm")
    head, row = cmlm.encoder.length_head.weight.clone(), cmlm.decoder.embed_tokens.weight[MASK].clone()
    cmlm.load_state_dict(ar.state_dict(), strict=True)
    assert torch.equal(cmlm.decoder.layers[1].fc2.weight, ar.decoder.layers[1].fc2.weight)
    assert torch.equal(cmlm.decoder.embed_tokens.weight[:MASK], ar.decoder.embed_tokens.weight)
    assert torch.equal(cmlm.decoder.embed_tokens.weight[MASK], row)
    assert torch.equal(cmlm.encoder.length_head.weight, head)


def test_a_start_checkpoint_of_as_many_but_other_words_is_refused(tmp_path):
    _, its_task = model()
    transformer_checkpoint(tmp_path / "ar.pt")
    state = torch.load(tmp_path / "ar.pt")
    symbols = its_task.src_dict.symbols
    other = [*symbols[:7], "another", *symbols[8:]]
    state["task_state"] = {"symbols": {"source": "\n".join(other), "target": "\n".join(symbols)}}
    torch.save(state, tmp_path / "ar.pt")
    with pytest.raises(ValueError, match="symbol 7 is 'w3', the checkpoint has 'another'"):
        model(*AS_TRANSFORMER_TINY, "--init-encoder-from", str(tmp_path / "ar.pt"))
    model(*AS_TRANSFORMER_TINY, "--init-decoder-from", str(tmp_path / "ar.pt"))
