"""``cmlm`` in the official form against numbers computed by the official Mask-Predict release."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import FIXTURES, hypotheses, mask_predict, run
from fairseq import checkpoint_utils, tasks

from nar_plugins.cli import convert
from nar_plugins.generators.canvas.lengths import gold_lengths
from nar_plugins.generators.canvas.schedule import remask_count
from nar_plugins.models.contract import Canvas

PASSES, BEAMS = (1, 2, 4, 10), (1, 3, 5)
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (5e-5, 1e-4)}  # logits and states; sums of log-probabilities


@pytest.fixture(scope="module")
def release(request):
    path = FIXTURES / "mask_predict_release" / "tiny.npz"
    return np.load(path, allow_pickle=False)


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    """A checkpoint as the release writes it, through nar-convert, and a data folder with its dictionary."""
    folder = tmp_path_factory.mktemp("release")
    names = [key for key in release.files if key.startswith("model.")]
    state = {key[len("model.") :]: torch.tensor(release[key]) for key in names}
    args = Namespace(arch="bert_transformer_seq2seq", encoder_attention_heads=4, decoder_attention_heads=4)
    torch.save({"args": args, "model": state}, folder / "official.pt")
    symbols = release["dict.symbols"].tolist()
    (folder / "dict.official.txt").write_text("".join(f"{s} {100 - i}\n" for i, s in enumerate(symbols[5:])))
    convert.main(
        [
            "mask-predict",
            str(folder / "official.pt"),
            "--dict",
            str(folder / "dict.official.txt"),
            "--out",
            str(folder / "new"),
        ]
    )
    return folder / "new"


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=str)
def model(request, converted):
    for language in ("en", "de"):
        (converted / f"dict.{language}.txt").write_bytes((converted / "dict.txt").read_bytes())
    state = checkpoint_utils.load_checkpoint_to_cpu(str(converted / "checkpoint.pt"))
    state["cfg"]["task"].update(data=str(converted), source_lang="en", target_lang="de")
    task = tasks.setup_task(state["cfg"]["task"])
    models, _ = checkpoint_utils.load_model_ensemble([str(converted / "checkpoint.pt")], task=task)
    return models[0].to(request.param).eval(), task, request.param


def close(actual, expected, dtype, which=0):
    torch.testing.assert_close(actual.double(), torch.tensor(expected), rtol=0, atol=TOLERANCE[dtype][which])


def generator(model, task, **settings):
    return mask_predict([model], task.target_dictionary, task.mask_index, **settings)


def test_ids_are_the_releases_own(model, release):
    _, task, _ = model
    assert task.target_dictionary.symbols == release["dict.symbols"].tolist()
    assert task.mask_index == int(release["dict.mask"])


def test_encoder_lengths_and_logits(model, release):
    model, _, dtype = model
    source = torch.tensor(release["src_tokens"])
    with torch.no_grad():
        out, memory = model.encoder(source), model.encode(source)
        real = ~torch.tensor(release["encoder_padding_mask"])
        assert out["encoder_padding_mask"][0].equal(~real)
        close(out["encoder_out"][0].transpose(0, 1)[real], release["encoder_out"][real.numpy()], dtype)
        lprobs = model.length_lprobs(memory)
        assert lprobs[:, 0].eq(-float("inf")).all()
        close(lprobs[:, 1:], release["length_lprobs"][:, 1:], dtype)
        for name in ("dec", "decpad"):
            tokens = torch.tensor(release[f"{name}.prev_output_tokens"])
            padding = tokens.eq(model.pad)
            logits = model.project(model.decode(Canvas(tokens, padding), memory))
            close(logits[~padding], release[f"{name}.logits"][~padding.numpy()], dtype)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("beam", BEAMS)
def test_complete_decodings(model, release, passes, beam):
    model, task, dtype = model
    expected = {
        name: release[f"mp.T{passes}.l{beam}.{name}"]
        for name in ("lengths", "tokens", "token_probs", "sum_log_probs", "scores", "best", "best_length", "best_score")
    }
    loop = generator(model, task, iterations=passes, length_beam=beam)
    sentences = loop.generate([model], {"net_input": {"src_tokens": torch.tensor(release["src_tokens"])}})
    for b, found in enumerate(sentences):
        by_length = {int(n): j for j, n in reversed(list(enumerate(expected["lengths"][b])))}
        assert {len(h["tokens"]) for h in found} == by_length.keys()  # duplicates dropped, nothing else
        assert len(found) == len(by_length)
        for h in found:
            n, j = len(h["tokens"]), by_length[len(h["tokens"])]
            assert h["tokens"].tolist() == expected["tokens"][b, j, :n].tolist()
            assert h["steps"] == passes
            close(h["positional_scores"].exp(), expected["token_probs"][b, j, :n], dtype)
            close(h["positional_scores"].sum(), expected["sum_log_probs"][b, j], dtype, 1)
            close(torch.tensor(h["score"], dtype=torch.float64), expected["scores"][b, j], dtype, 1)
        assert len(found[0]["tokens"]) == expected["best_length"][b]
        close(torch.tensor(found[0]["score"], dtype=torch.float64), expected["best_score"][b], dtype, 1)
        assert [h["score"] for h in found] == sorted((h["score"] for h in found), reverse=True)


def test_every_pass_of_the_trace(model, release):
    model, task, dtype = model
    trace = {name: release[f"trace.T4.l3.{name}"] for name in ("dec_input", "remasked", "tokens", "token_probs")}
    loop = generator(model, task, iterations=4, length_beam=3)
    seen = []
    fill, predict = loop.fill, loop.predict

    def spy_predict(tokens, *more):
        seen.append({"dec_input": tokens})
        return predict(tokens, *more)

    def spy_fill(*args, **kwargs):
        after = fill(*args, **kwargs)
        seen[-1].update(tokens=after.tokens, lprobs=after.lprobs)
        return after

    loop.fill, loop.predict = spy_fill, spy_predict
    loop.generate([model], {"net_input": {"src_tokens": torch.tensor(release["src_tokens"])}})
    assert len(seen) == 4
    for t, now in enumerate(seen):
        shape = trace["tokens"][t].shape
        assert np.array_equal(now["dec_input"].view(shape).numpy(), trace["dec_input"][t])
        assert np.array_equal(now["dec_input"].eq(model.mask).view(shape).numpy(), trace["remasked"][t])
        assert np.array_equal(now["tokens"].view(shape).numpy(), trace["tokens"][t])
        probabilities = now["lprobs"].view(shape).double()
        probabilities = torch.where(probabilities.isinf(), torch.ones_like(probabilities), probabilities.exp())
        close(probabilities, trace["token_probs"][t], dtype)


def test_gold_lengths(release):
    gold = torch.tensor(release["gold.target_len"])
    for beam in range(1, 6):
        lengths, _ = gold_lengths(gold, beam, classes=64)
        assert lengths.tolist() == release[f"gold.lengths.l{beam}"].tolist()


def test_remask_counts_but_for_the_four_rounding_errors_of_the_release(release):
    lengths, differing = torch.arange(1, 201), set()
    for passes in (*range(2, 11), 12, 15, 16, 20, 25, 30):
        for done in range(1, passes):
            ours = remask_count(lengths, done, passes, "linear")
            theirs = torch.tensor(release[f"schedule.T{passes}"][done - 1]).long()
            for n in lengths[ours.ne(theirs)].tolist():
                assert ours[n - 1] == theirs[n - 1] + 1
                differing.add((passes, done, n))
    assert differing == {(12, 5, 108), (20, 7, 180), (25, 4, 75), (25, 4, 150)}


def test_through_the_stock_commands(release, converted, tmp_path):
    """fairseq-preprocess --srcdict and fairseq-generate give the release's tokens."""
    symbols, eos, pad = release["dict.symbols"].tolist(), int(release["dict.eos"]), int(release["dict.pad"])

    def text(rows):
        return "".join(" ".join(symbols[i] for i in row if i not in (eos, pad)) + "\n" for row in rows.tolist())

    (tmp_path / "test.en").write_text(text(release["src_tokens"]))
    (tmp_path / "test.de").write_text(text(release["target"]))
    run(
        "fairseq-preprocess",
        "-s",
        "en",
        "-t",
        "de",
        "--srcdict",
        converted / "dict.txt",
        "--joined-dictionary",
        "--testpref",
        tmp_path / "test",
        "--destdir",
        tmp_path / "bin",
    )
    out = run(
        "fairseq-generate",
        tmp_path / "bin",
        "--user-dir",
        "nar_plugins",
        "--task",
        "nar_translation",
        "--cpu",
        "--path",
        converted / "checkpoint.pt",
        "--iterations",
        4,
        "--length-beam",
        3,
        "--batch-size",
        3,
    )
    found = hypotheses(out)
    for b, row in enumerate(release["mp.T4.l3.best_tokens"]):
        assert found[b][0][1] == text(row[None]).strip()
