"""nar-prune: what is unimportant is found and removed, nothing else changes, and every reader takes the result."""

import contextlib
import io
import logging
import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import hypotheses, preprocess, write_pairs
from in_process import here, own_refusal
from saved import corpus, run, save
from tiny import dictionary

from nar_plugins.checkpoint_io.average import average
from nar_plugins.cli import pack, prune
from nar_plugins.compat import checked
from nar_plugins.hub import from_pretrained
from nar_plugins.modules.factorised import FactorisedProjection, factorise
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.pruned import FEED_FORWARD, KEPT, layers_of, parts_of, sizes_of
from nar_plugins.pruning.choice import choose
from nar_plugins.pruning.importance import Key, parts_of_model
from nar_plugins.pruning.job import Validation

SIZE = [
    f"--{side}-{what}"
    for side in ("encoder", "decoder")
    for what in ("embed-dim=32", "ffn-embed-dim=24", "attention-heads=4", "layers=2")
]
FEW = ("--max-source-positions=30", "--max-target-positions=60")
MODELS = {
    "cmlm": ("cmlm_tiny",),
    "pooled": ("cmlm", "--encoder-normalize-before", "--decoder-normalize-before", "--encoder-layerdrop=0.5"),
    "nat": ("nat_tiny", "--width-scaled-attention"),
    "uniform": ("nat_tiny", "--source-copy=uniform"),
    "ctc": ("nat", "--ctc"),
    "dag": ("dag_tiny", "--upsample=4"),
    "heads": ("blockwise", "--block-size=3", "--block-loss=weighted"),
    "frozen": ("blockwise", "--block-size=3", "--block-head=sequential", "--freeze-base", "--block-loss=weighted"),
    "bang": ("bang_tiny",),
}
LINES = ["w1 w2 w3", "w4", "w9 w9 w9 w2 w1 w7 w8 w1", "w5 w6 w5 w6", "w11 w12", "w3 w3 w19"]
SHORT = {"max_len_a": 0, "max_len_b": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    """Checkpoints of random weights, and data whose splits "valid" and "test" are the same."""
    root = tmp_path_factory.mktemp("prune")
    pairs = [(line, " ".join(reversed(line.split()))) for line in LINES]
    write_pairs(root / "text", pairs, "valid")
    data = corpus(root / "text", pairs)
    for split in ("valid", "test"):  # the targets are as long as the sources
        text = "".join(f"{'1 ' * len(line.split())}1\n" for line in LINES)
        (data / f"{split}.src-tgt.fert").write_text(text)
    models = {name: save(root / f"{name}.pt", flags[0], *SIZE, *FEW, *flags[1:]) for name, flags in MODELS.items()}
    return Namespace(root=root, data=data, models=models)


def nar_prune(made, path, out, *flags) -> str:
    """What nar-prune prints."""
    given = [path, "--data", made.data, "--cpu", *(("--out", out) if out is not None else ()), *flags]
    try:
        return printed(given)
    finally:
        logging.disable(logging.NOTSET)  # main silences the log of its process


def printed(given) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        prune.main([*map(str, given)])
    return text.getvalue()


def validation(made, path, **layers) -> Validation:
    return Validation(str(path), str(made.data), "valid", 4000, True, layers)


def losses(made, path) -> list:
    """The losses of a checkpoint's model on every batch, by part."""
    valid = validation(made, path)
    with torch.no_grad():
        found = []
        for sample in valid.batches():
            objective = valid.criterion.objective(valid.model, sample)
            parts = valid.model(**sample["net_input"], target=sample["target"], objective=objective)
            found += [float(part.loss) for part in parts.values()]
    return found


def changed(path: Path, out: Path, change) -> Path:
    """A copy of a checkpoint whose parameters ``change`` changes in place, given by name."""
    state = torch.load(path, weights_only=False)
    change(state["model"])
    torch.save(state, out)
    return out


def closed(model, kept) -> None:
    """Set to 0 what the removed units of a checkpoint's parameters give on."""
    for key, units in kept.items():
        output = "fc2" if key.part == FEED_FORWARD else f"{key.part}.out_proj"
        weight = model[f"{key.side}.layers.{key.layer}.{output}.weight"]
        number = {"ffn": weight.size(1)}.get(key.part, 4)
        removed = [unit for unit in range(number) if unit not in units.tolist()]
        weight.view(weight.size(0), number, -1)[:, removed] = 0


# -- removed is as good as closed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, scope", [*((name, "layer") for name in MODELS), *((name, "global") for name in ("ctc", "cmlm", "bang"))]
)
def test_a_pruned_model_computes_what_the_whole_one_does_with_the_units_closed(made, name, scope, tmp_path):
    path, out = made.models[name], tmp_path / "out.pt"
    nar_prune(made, path, out, "--prune-heads", "0.5", "--prune-ffn", "0.6", "--multiple", "1", "--scope", scope)
    valid = validation(made, path)
    kept = choose(valid.importance(), 0.5, 0.6, scope, 1)
    masked = changed(path, tmp_path / "masked.pt", lambda model: closed(model, kept))
    assert losses(made, out) == pytest.approx(losses(made, masked), rel=1e-4)
    assert losses(made, out) != pytest.approx(losses(made, path), rel=1e-3)
    assert sizes_of(validation(made, out).model) == checked(out)["cfg"]["model"].kept_sizes
    assert out.stat().st_size < path.stat().st_size
    if scope == "layer":
        assert {len(units) for key, units in kept.items() if key.part != FEED_FORWARD} == {2}
    options = {} if name in ("ctc", "dag") else SHORT
    found, wanted = (hypotheses(run("fairseq-generate", made.data, each, **options)) for each in (out, masked))
    assert {i: nbest[0][1] for i, nbest in found.items()} == {i: nbest[0][1] for i, nbest in wanted.items()}


def test_the_rows_of_a_removed_head_are_those_that_go(made, tmp_path):
    out = tmp_path / "out.pt"
    nar_prune(made, made.models["cmlm"], out, "--prune-heads", "0.25", "--scope", "layer")
    before, after = (checked(path)["model"] for path in (made.models["cmlm"], out))
    kept = choose(validation(made, made.models["cmlm"]).importance(), 0.25, 0, "layer", 1)
    for key, heads in kept.items():
        name = f"{key.side}.layers.{key.layer}.{key.part}"
        if key.part == FEED_FORWARD:
            continue
        for projection in ("q_proj", "k_proj", "v_proj"):
            whole = before[f"{name}.{projection}.weight"].view(4, 8, 32)
            assert after[f"{name}.{projection}.weight"].equal(whole[heads].flatten(0, 1))
        assert after[f"{name}.out_proj.weight"].shape == (32, 24)
    same = [name for name in before if before[name].shape == after[name].shape]
    assert all(before[name].equal(after[name]) for name in same) and "encoder.layers.0.fc1.weight" in same


def test_what_is_tied_stays_tied(made, tmp_path):
    nar_prune(made, made.models["ctc"], tmp_path / "out.pt", "--prune-ffn", "0.5", "--embedding-rank", "5")
    for path, names in (
        (made.models["ctc"], ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection")),
        (
            tmp_path / "out.pt",
            (
                "encoder.embed_tokens.embed_tokens",
                "decoder.embed_tokens.embed_tokens",
                "decoder.output_projection.output_projection",
            ),
        ),
    ):
        state = checked(path)["model"]
        assert len({state[f"{name}.weight"].data_ptr() for name in names}) == 1


# -- importance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cmlm", "ctc", "dag", "heads", "bang", "frozen"])
def test_dead_units_come_first(made, name, tmp_path):
    dead = {}

    def kill(model) -> None:
        """One head of every attention and three units of every feed-forward layer: closed, or without a value."""
        for number, key in enumerate(parts_of_model(validation(made, made.models[name]).model)):
            place, unit = f"{key.side}.layers.{key.layer}", number % 3
            if key.part == FEED_FORWARD:
                dead[key] = {unit, unit + 7, 20}
                model[f"{place}.fc2.weight"][:, sorted(dead[key])] = 0
                continue
            dead[key], rows = {unit}, slice(8 * unit, 8 * unit + 8)
            if number % 2 or key.part == "ngram_self_attn":
                model[f"{place}.{key.part}.out_proj.weight"][:, rows] = 0
            else:
                for kind in ("weight", "bias"):
                    model[f"{place}.{key.part}.v_proj.{kind}"][rows] = 0

    path = changed(made.models[name], tmp_path / "dead.pt", kill)
    importance = validation(made, path).importance()
    assert importance.keys() == dead.keys()
    for key, scores in importance.items():
        zeros = set(scores.lt(1e-9).nonzero().flatten().tolist())
        relu_never = key.part == FEED_FORWARD  # a random unit may be 0 at every position
        assert zeros >= dead[key] if relu_never else zeros == dead[key], key
    nar_prune(made, path, tmp_path / "out.pt", "--prune-heads", "0.25", "--prune-ffn", "0.125", "--multiple", "1")
    assert losses(made, tmp_path / "out.pt") == pytest.approx(losses(made, path), rel=1e-5)


def test_importance_is_the_change_of_the_loss_to_first_order(made):
    """Against a gate at every position of one part, differentiated by hand; float64."""
    valid = validation(made, made.models["ctc"])
    valid.model.double()
    found = valid.importance()
    key = Key("decoder", 1, "encoder_attn")
    output = parts_of_model(valid.model)[key].output
    sums, targets = torch.zeros(4, dtype=torch.float64), 0
    for sample in valid.batches():
        shapes = []
        handle = output.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[:-1]))
        valid.criterion(valid.model, sample)
        handle.remove()
        gate = torch.ones(*shapes[0], 4, 1, dtype=torch.float64, requires_grad=True)
        handle = output.register_forward_pre_hook(
            lambda module, inputs, gate=gate: ((inputs[0].unflatten(-1, (4, -1)) * gate).flatten(-2),)
        )
        loss, size, _ = valid.criterion(valid.model, sample)
        handle.remove()
        sums += torch.autograd.grad(loss, gate)[0].abs().flatten(0, -3).sum((0, 2))
        targets += size
    torch.testing.assert_close(found[key], sums / float(targets))
    step = 1e-4  # and what one gate's derivative is
    losses_ = []
    for factor in (1 - step, 1 + step):
        gate = torch.ones(4, 1, dtype=torch.float64)
        gate[2] = factor
        handle = output.register_forward_pre_hook(
            lambda module, inputs, gate=gate: ((inputs[0].unflatten(-1, (4, -1)) * gate).flatten(-2),)
        )
        losses_.append(valid.mean(valid.criterion(valid.model, sample) for sample in valid.batches()))
        handle.remove()
    assert abs(losses_[1] - losses_[0]) / (2 * step) <= float(found[key][2]) * (1 + 1e-6)


def test_importance_does_not_depend_on_the_batches(made):
    small, large = (
        Validation(str(made.models["cmlm"]), str(made.data), "valid", tokens, True, {}) for tokens in (12, 4000)
    )
    assert len(list(small.batches())) > len(list(large.batches()))
    one, other = small.importance(), large.importance()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-7)


# -- which units ------------------------------------------------------------------------------------------------------


def scores(**parts) -> dict:
    return {
        Key("encoder", 0, name.rstrip("12"))
        if name.endswith("1")
        else Key("decoder", 1, name.rstrip("12")): torch.tensor(values, dtype=torch.float64)
        for name, values in parts.items()
    }


@pytest.mark.parametrize(
    "share, scope, wanted",
    [
        (0.0, "layer", ([0, 1, 2, 3], [0, 1, 2, 3])),
        (0.5, "layer", ([1, 2], [0, 3])),
        (0.6, "layer", ([1, 2], [0, 3])),  # 2.4 of 4 are 2
        (0.75, "layer", ([2], [3])),
        (0.99, "layer", ([2], [3])),
        (0.5, "global", ([2], [0, 2, 3])),
        (0.75, "global", ([2], [3])),
        (0.25, "global", ([1, 2], [0, 1, 2, 3])),
    ],
)
def test_the_least_important_go(share, scope, wanted):
    importance = scores(self_attn1=[0.1, 0.3, 0.5, 0.2], self_attn2=[6.0, 4.0, 5.0, 7.0])
    kept = choose(importance, share, 0, scope, 8)
    assert tuple(kept[key].tolist() for key in importance) == wanted


def test_heads_and_units_are_chosen_apart():
    importance = scores(self_attn1=[5.0, 6.0], ffn1=[0.1, 0.2, 0.3, 0.4], ffn2=[9.0, 8.0, 7.0, 6.0])
    kept = choose(importance, 0, 0.5, "global", 1)
    assert [kept[key].tolist() for key in importance] == [[0, 1], [3], [0, 1, 2]]


@pytest.mark.parametrize("multiple, wanted", [(1, 11), (8, 8), (16, 16), (64, 24)])
def test_feed_forward_units_are_a_multiple(multiple, wanted):
    importance = scores(ffn1=list(range(24)))
    (kept,) = choose(importance, 0, 0.55, "layer", multiple).values()
    assert kept.tolist() == list(range(24 - wanted, 24))


# -- layers and embeddings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pooled", "dag", "heads", "bang"])
def test_layers_go_as_by_fairseq_s_flag_at_loading(made, name, tmp_path):
    out = tmp_path / "out.pt"
    text = nar_prune(made, made.models[name], out, "--encoder-layers-to-keep", "1", "--decoder-layers-to-keep", "0")
    one = nar_prune(made, made.models[name], None, "--dry-run", "--encoder-layers-to-keep", "1")
    assert "encoder 0: removed" in one and "decoder 1: removed" not in one  # the other side stays
    valid = validation(made, made.models[name], encoder="1", decoder="0")
    assert len(layers_of(valid.model.encoder)) == 1 == len(layers_of(validation(made, out).model.decoder))
    ours, wanted = checked(out)["model"], valid.model.state_dict()
    assert ours.keys() == wanted.keys() and all(ours[key].equal(wanted[key]) for key in ours)
    assert vars(checked(out)["cfg"]["model"])["encoder_layers"] == 1
    assert "encoder 0: removed" in text and "decoder 1: removed" in text and "encoder 1: self_attn 4 of 4" in text


def test_a_list_of_layers_may_end_in_a_comma(made, tmp_path):
    said = nar_prune(made, made.models["ctc"], None, "--dry-run", "--encoder-layers-to-keep", "1,")
    assert "encoder 0: removed\nencoder 1: self_attn" in said


def test_layers_of_a_pruned_model_can_be_left_out_at_loading(made, tmp_path):
    out = tmp_path / "out.pt"
    nar_prune(made, made.models["ctc"], out, "--prune-ffn", "0.5", "--scope", "global", "--multiple", "1")
    whole, part = validation(made, out).model, validation(made, out, encoder="1", decoder="0,1").model
    assert sizes_of(part)["encoder"] == sizes_of(whole)["encoder"][1:]
    assert sizes_of(part)["decoder"] == sizes_of(whole)["decoder"]


@pytest.mark.parametrize("name", ["cmlm", "uniform", "ctc", "dag"])
def test_a_factorised_table_is_the_best_of_its_rank(made, name, tmp_path):
    out = tmp_path / "out.pt"
    nar_prune(made, made.models[name], out, "--embedding-rank", "6")
    names = [f"{part}.weight" for part in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection")]

    def approximate(model) -> None:
        table = model[names[0]]
        left, values, right = torch.linalg.svd(table.double(), full_matrices=False)
        best = (left[:, :6] * values[:6] @ right[:6]).float()
        assert 0.1 < (table - best).norm() / table.norm() < 0.9
        for key in names:
            model[key] = best

    dense = changed(made.models[name], tmp_path / "dense.pt", approximate)
    assert losses(made, out) == pytest.approx(losses(made, dense), rel=1e-4)
    model = validation(made, out).model
    padding = model.encoder.embed_tokens(torch.tensor([1])).abs().max()
    assert name in ("cmlm", "dag") or padding < 1e-6  # BERT's initialisation draws padding, too
    factors = sum(
        p.numel() for p in {*model.encoder.embed_tokens.parameters(), *model.decoder.output_projection.parameters()}
    )
    assert factors == 25 * 6 + 2 * 6 * 32


def test_a_factorised_model_trains_every_factor(made, tmp_path):
    nar_prune(made, made.models["ctc"], tmp_path / "out.pt", "--embedding-rank", "6")
    valid = validation(made, tmp_path / "out.pt")
    loss, *_ = valid.criterion(valid.model, next(valid.batches()))
    loss.backward()
    projection = valid.model.decoder.output_projection
    assert isinstance(projection, FactorisedProjection)
    for parameter in (*projection.parameters(), *valid.model.encoder.embed_tokens.parameters()):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_words_count_as_often_as_they_occur(made):
    """The weighted error is that of the singular values left out, and less than that of equal weights."""
    counts, errors = 2.0 ** torch.arange(25), {}
    for name, given in (("weighted", counts), ("equal", None)):
        model = validation(made, made.models["ctc"]).model
        before = model.encoder.embed_tokens.weight.detach().double()
        factorise(model, 6, given)
        after = model.encoder.embed_tokens(torch.arange(25)).detach().double()
        errors[name] = (counts * (after - before).square().sum(1)).sum().item()
    values = torch.linalg.svdvals(before * counts.double().sqrt().unsqueeze(1))
    assert errors["weighted"] == pytest.approx(values[6:].square().sum().item(), rel=1e-4)
    assert errors["weighted"] < 0.9 * errors["equal"]


def test_of_its_full_rank_a_table_is_itself(made):
    valid = validation(made, made.models["cmlm"])
    before = valid.loss()
    factorise(valid.model, 25)  # symbols
    assert valid.loss() == pytest.approx(before, rel=1e-4)


# -- who reads it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(made) -> Namespace:
    """Pruned checkpoints, every one with layers of different sizes."""
    paths = {name: made.root / f"{name}.small.pt" for name in ("cmlm", "ctc", "heads", "bang", "dag")}
    for name, path in paths.items():
        rank = () if name in ("heads", "bang") else ("--embedding-rank", "9")
        flags = ("--prune-heads", "0.4", "--prune-ffn", "0.45", "--scope", "global", "--multiple", "1", *rank)
        nar_prune(made, made.models[name], path, *flags)
        assert len({str(layer) for layer in checked(path)["cfg"]["model"].kept_sizes["decoder"]}) == 2
    return Namespace(**paths)


@pytest.mark.parametrize("name", ["cmlm", "ctc", "dag", "heads", "bang"])
def test_hub_and_folders_translate_as_fairseq_generate(made, small, name, tmp_path):
    path, options = getattr(small, name), {} if name in ("ctc", "dag") else SHORT
    best = [n[0] for _, n in sorted(hypotheses(run("fairseq-generate", made.data, path, **options)).items())]
    wanted, scores_ = [text for _, text in best], [float(score) * math.log(2) for score, _ in best]
    found = from_pretrained(path, made.data, cpu=True, **options).translate(LINES)
    assert [t.text for t in found] == wanted and [t.score for t in found] == pytest.approx(scores_, abs=1e-3)
    pack.main([str(path), "--data", str(made.data), "--out", str(tmp_path / "packed")])
    logging.disable(logging.NOTSET)
    assert [t.text for t in from_pretrained(tmp_path / "packed", cpu=True, **options).translate(LINES)] == wanted
    assert len({round(score, 3) for score in scores_}) > 2


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        pytest.param(
            "int8", marks=pytest.mark.skipif(int8_lacks(torch.device("cpu")) is not None, reason="no int8 here")
        ),
    ],
)
@pytest.mark.parametrize("name", ["cmlm", "ctc", "dag", "heads", "bang"])
def test_other_precisions_and_their_fused_products(made, name, dtype, tmp_path):
    """Of initial weights, which are sure of nothing: their scores are near one another in every precision."""
    options = {} if name in ("ctc", "dag") else SHORT
    arch, *flags = MODELS[name]
    rank = () if name in ("heads", "bang") else ("--embedding-rank", "9")
    nar_prune(
        made,
        save(tmp_path / "whole.pt", arch, *SIZE, *FEW, *flags, scale=1.0),
        tmp_path / "out.pt",
        "--prune-heads",
        "0.4",
        "--prune-ffn",
        "0.45",
        "--scope",
        "global",
        "--multiple",
        "1",
        *rank,
    )
    out, plain = (
        hypotheses(run("fairseq-generate", made.data, tmp_path / "out.pt", decode_dtype=each, **options))
        for each in (dtype, "float32")
    )
    found, wanted = ([float(n[0][0]) for _, n in sorted(each.items())] for each in (out, plain))
    assert found != wanted and found == pytest.approx(wanted, rel=0.1)


def test_a_pruned_and_a_whole_model_are_an_ensemble(made, small):
    out = run("fairseq-generate", made.data, f"{small.ctc}:{made.models['ctc']}")
    assert len(hypotheses(out)) == len(LINES)


def test_averages_of_pruned_models(made, small, tmp_path):
    other = changed(small.ctc, tmp_path / "other.pt", lambda model: model["encoder.layers.0.fc1.weight"].mul_(3))
    average([small.ctc, other], tmp_path / "average.pt")
    one, mean = (checked(path)["model"]["encoder.layers.0.fc1.weight"] for path in (small.ctc, tmp_path / "average.pt"))
    torch.testing.assert_close(mean, 2 * one)
    with pytest.raises(ValueError, match="only checkpoints of one model have an average"):
        average([small.ctc, made.models["ctc"]], tmp_path / "no.pt")


# -- fine-tuning ------------------------------------------------------------------------------------------------------

TRAINING = (
    "--task=nar_translation",
    "--share-all-embeddings",
    *SIZE,
    *FEW,
    "--optimizer=adam",
    "--lr=0.01",
    "--max-tokens=200",
    "--no-epoch-checkpoints",
    "--cpu",
)


@pytest.mark.parametrize("name", ["ctc", "cmlm", "heads", "bang"])
def test_fine_tuning_by_the_first_training_s_command(made, small, name, tmp_path):
    data = preprocess_train(made, tmp_path)
    criterion = {"heads": "blockwise_loss", "bang": "bang_loss"}.get(name, "nar_loss")
    arch, *flags = MODELS[name]
    command = [data, "--user-dir=nar_plugins", *TRAINING, "--arch", arch, *flags, "--criterion", criterion]
    command += ["--save-dir", tmp_path / "run"]
    path = getattr(small, name)
    here("fairseq-train", *command, "--finetune-from-model", path, "--max-update=3")
    first = checked(tmp_path / "run" / "checkpoint_last.pt")
    assert vars(first["cfg"]["model"])[KEPT] == vars(checked(path)["cfg"]["model"])[KEPT]
    before, after = checked(path)["model"], first["model"]
    assert all(after[key].shape == value.shape for key, value in before.items() if key in after)
    assert not after["encoder.layers.0.fc1.weight"].equal(before["encoder.layers.0.fc1.weight"])
    # a second run continues, also where the pruned checkpoint is not named again
    here("fairseq-train", *command, "--max-update=5")
    last = checked(tmp_path / "run" / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == 5
    assert sizes_of(validation(made, tmp_path / "run" / "checkpoint_last.pt").model) == vars(last["cfg"]["model"])[KEPT]
    options = {} if name == "ctc" else SHORT
    out = run("fairseq-generate", made.data, tmp_path / "run" / "checkpoint_last.pt", **options)
    assert len(hypotheses(out)) == len(LINES)


def preprocess_train(made, folder: Path) -> Path:
    pairs = [(line, " ".join(reversed(line.split()))) for line in 4 * LINES]
    for split in ("train", "valid"):
        write_pairs(folder / "text", pairs, split)
    dictionary(20).save(str(folder / "dict.txt"))
    return preprocess(folder / "text", folder / "bin", srcdict=folder / "dict.txt")


def test_a_restored_pruned_checkpoint_has_its_sizes(made, small, tmp_path):
    data = preprocess_train(made, tmp_path)
    command = [data, "--user-dir=nar_plugins", *TRAINING, "--arch=nat", "--ctc", "--criterion=nar_loss"]
    resets = [f"--reset-{what}" for what in ("optimizer", "lr-scheduler", "meters", "dataloader")]
    here(
        "fairseq-train",
        *command,
        "--save-dir",
        tmp_path / "run",
        "--restore-file",
        small.ctc,
        *resets,
        "--max-update=2",
    )
    state = checked(tmp_path / "run" / "checkpoint_last.pt")
    assert vars(state["cfg"]["model"])[KEPT] == vars(checked(small.ctc)["cfg"]["model"])[KEPT]


def test_eval_bleu_decodes_the_pruned_model(made, small, tmp_path):
    data = preprocess_train(made, tmp_path)
    command = [data, "--user-dir=nar_plugins", *TRAINING, "--arch=cmlm_tiny", "--criterion=nar_loss", "--eval-bleu"]
    command += ["--finetune-from-model", small.cmlm, "--max-update=2", "--save-dir", tmp_path / "run"]
    here("fairseq-train", *command)
    assert (tmp_path / "run" / "checkpoint_last.pt").exists()


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_says_what_is_left_of_what(made, tmp_path):
    path, out = made.models["uniform"], tmp_path / "out.pt"
    flags = ("--prune-heads", "0.5", "--prune-ffn", "0.6", "--multiple", "1", "--scope", "layer")
    text = nar_prune(made, path, out, *flags)
    dry = nar_prune(made, path, None, "--dry-run", *flags)
    assert text == f"{dry}{out}: written\n"
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and ":" not in line}
    counts = {}
    for number, checkpoint in enumerate((path, out)):
        model = validation(made, checkpoint).model
        counts[number] = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
        parts = {"encoder": model.encoder.layers, "decoder": model.decoder.layers}
        for part, layers in parts.items():
            assert int(rows[part][number].replace(",", "")) == sum(p.numel() for p in layers.parameters())
        assert int(rows["all"][number].replace(",", "")) == counts[number]
    assert float(rows["all"][2]) == pytest.approx(counts[1] / counts[0], abs=0.005)
    assert "decoder 1: self_attn 2 of 4 heads" in text and "ffn 10 of 24 units" in text
    before, after = validation(made, path).loss(), validation(made, out).loss()
    assert f"loss on valid: {before:.3f} before, {after:.3f} after" in text


def test_the_loss_is_fairseq_validate_s(made):
    path = made.models["cmlm"]
    out = here(
        "fairseq-validate",
        made.data,
        "--user-dir=nar_plugins",
        "--task=nar_translation",
        "--path",
        path,
        "--cpu",
        "--log-format=simple",
        "--max-tokens=4000",
    )
    assert f"loss on valid: {validation(made, path).loss():.3f} before" in nar_prune(
        made, path, None, "--dry-run", "--prune-ffn", "0.1"
    )
    assert out == "" or f"{validation(made, path).loss():.3f}" in out


def test_the_checkpoint_before_is_left_as_it_was(made, tmp_path):
    before = made.models["ctc"].read_bytes()
    nar_prune(made, made.models["ctc"], tmp_path / "new" / "out.pt", "--prune-heads", "0.5")
    assert made.models["ctc"].read_bytes() == before and (tmp_path / "new" / "out.pt").exists()
    assert checked(tmp_path / "new" / "out.pt")["last_optimizer_state"] is None


def test_half_precision_stays_half(made, tmp_path):
    def halve(model):
        model.update({name: t.half() if t.is_floating_point() else t for name, t in model.items()})

    half = changed(made.models["ctc"], tmp_path / "half.pt", halve)
    nar_prune(made, half, tmp_path / "out.pt", "--prune-heads", "0.5")
    assert {str(t.dtype) for t in checked(tmp_path / "out.pt")["model"].values() if t.is_floating_point()} == {
        "torch.float16"
    }


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, flags, message",
    [
        ("ctc", [], "nothing is to be removed: give --prune-heads"),
        ("ctc", ["--prune-heads", "1"], "--prune-heads 1: nothing would be left"),
        ("ctc", ["--prune-ffn", "1.5"], "--prune-ffn 1.5: give the share that is removed, from 0 up to"),
        ("ctc", ["--prune-ffn", "-0.1"], "--prune-ffn -0.1: give the share that is removed"),
        ("ctc", ["--prune-ffn", "nan"], "--prune-ffn nan: give the share that is removed"),
        ("ctc", ["--prune-heads", "0.9", "--scope", "global"], "--prune-heads 0.9 leaves 3 of 24 for 6 parts"),
        ("ctc", ["--prune-ffn", "0.5", "--multiple", "0"], "--multiple 0: give a number from 1 up"),
        ("ctc", ["--prune-ffn", "0.5", "--max-tokens", "0"], "--max-tokens 0: give a number from 1 up"),
        (
            "ctc",
            ["--prune-ffn", "0.5", "--max-tokens", "1"],
            "--max-tokens 1: a sentence of the split 'valid' is longer: raise it",
        ),
        ("ctc", ["--encoder-layers-to-keep", "\u00b2"], "name some of the encoder's layers 0 to 1, each once"),
        ("ctc", ["--encoder-layers-to-keep", ","], "--encoder-layers-to-keep ',': nothing would be left"),
        (
            "ctc",
            ["--encoder-layers-to-keep", "0,2"],
            "--encoder-layers-to-keep '0,2': name some of the encoder's layers",
        ),
        ("ctc", ["--decoder-layers-to-keep", "1,1"], "name some of the decoder's layers 0 to 1, each once"),
        ("ctc", ["--decoder-layers-to-keep", "x"], "name some of the decoder's layers 0 to 1, each once"),
        (
            "ctc",
            ["--embedding-rank", "32"],
            "--embedding-rank 32: the embeddings are 32 wide; give a number from 1 to 31",
        ),
        ("ctc", ["--embedding-rank", "-1"], "--embedding-rank -1: the embeddings are 32 wide"),
        ("ctc", ["--embedding-rank", "0"], "--embedding-rank 0: the embeddings are 32 wide"),
        ("bang", ["--embedding-rank", "8"], "--embedding-rank 8 is for nat, cmlm and dag, and this is a BangModel"),
        ("untied", ["--embedding-rank", "8"], "--embedding-rank 8: the model has several tables of words"),
        ("uniform", ["--encoder-layers-to-keep", "0"], "--layerwise-attention needs as many"),
        ("ctc", ["--prune-ffn", "0.5", "--split", "train"], "train.src-tgt.src"),
        ("ctc", ["--prune-ffn", "0.5", "--data", "nowhere"], "nowhere"),
        ("gone", ["--prune-ffn", "0.5"], "no checkpoint at gone.pt"),
        ("small", ["--prune-ffn", "0.5"], "small.pt was pruned already: prune the checkpoint that it was made of"),
        ("foreign", ["--prune-ffn", "0.5"], "holds a model 'transformer', which is none of this package"),
        ("quantised", ["--prune-ffn", "0.5"], "was trained with --quant-noise-pq: the weights of quantised layers"),
        ("diverged", ["--prune-ffn", "0.5"], "the loss on the split 'valid' is nan"),
        ("ctc", ["--prune-ffn", "0.5", "--out", "ctc.pt"], "--out ctc.pt is the checkpoint itself"),
        ("ctc", ["--prune-ffn", "0.5", "--out", "."], "--out .: this is a folder, and not a file"),
        ("ctc", ["--prune-ffn", "0.5", "--dry-run"], "give --out FILE, or --dry-run"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(unusable, made, monkeypatch, model, flags, message):
    monkeypatch.chdir(unusable)
    before = sorted(path.name for path in unusable.iterdir())
    if "--out" not in flags:
        flags = [*flags, "--out", "out.pt"]
    if "--data" not in flags:
        flags = [*flags, "--data", made.data]
    said = own_refusal(prune.main, f"{model}.pt", "--cpu", *flags)
    assert message in said
    assert sorted(path.name for path in unusable.iterdir()) == before


@pytest.fixture(scope="module")
def unusable(made, small, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unusable")
    for name in ("ctc", "bang", "uniform"):
        (folder / f"{name}.pt").write_bytes(made.models[name].read_bytes())
    (folder / "small.pt").write_bytes(small.ctc.read_bytes())
    save(folder / "foreign.pt", "transformer", *SIZE)
    save(folder / "quantised.pt", "cmlm", "--quant-noise-pq=0.1", "--quant-noise-pq-block-size=4")

    def poison(model):
        model["encoder.layers.0.fc1.weight"].fill_(float("nan"))

    changed(made.models["ctc"], folder / "diverged.pt", poison)
    untied = torch.load(made.models["ctc"], weights_only=False)
    vars(untied["cfg"]["model"])["share_all_embeddings"] = False
    untied["model"] = {name: tensor.clone() for name, tensor in untied["model"].items()}
    torch.save(untied, folder / "untied.pt")
    return folder


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--encoder-ffn-embed-dim=8"], "encoder.layers.0.ffn, which has 8 here: give the --arch and sizes"),
        (["--decoder-attention-heads=1"], "which has 1 here: give the --arch and sizes of the model that was pruned"),
    ],
)
def test_a_fine_tuning_with_other_sizes_is_told_so(made, small, tmp_path, flags, message):
    data = preprocess_train(made, tmp_path)
    command = [data, "--user-dir=nar_plugins", *TRAINING, "--arch=nat", "--ctc", "--criterion=nar_loss", *flags]
    with pytest.raises(ValueError, match=message):
        here("fairseq-train", *command, "--finetune-from-model", small.ctc, "--save-dir", tmp_path / "run")


def test_a_part_of_a_layer_is_known_by_its_modules(made):
    model = validation(made, made.models["uniform"]).model
    assert [*parts_of(layers_of(model.decoder)[0])] == ["self_attn", "encoder_attn", "positional_attn", "ffn"]
