"""Folders of nar-pack: they translate as the checkpoint does, nothing in them is unpickled, errors are one line."""

import io
import json
import logging
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import sentencepiece
import torch
from conftest import hypotheses
from fairseq.data import Dictionary
from saved import corpus, run, save
from test_hub import LINES, MODELS, SHORT, refusal
from tiny import dictionary

from nar_plugins.cli import pack as command
from nar_plugins.data.whole_file import fingerprint
from nar_plugins.hub import folder, from_pretrained
from nar_plugins.hub import pack as packing

GENERATED = [line for line in LINES if "<" not in line]  # binarised by fairseq-preprocess, which reads <pad> as a word


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("pack")
    data = corpus(root / "text", [(line, "w1 w2") for line in GENERATED])
    models = {
        name: save(root / f"{name}.pt", *flags, scale=8.0 if name == "bang" else 4.0) for name, flags in MODELS.items()
    }
    return Namespace(root=root, data=data, models=models)


def nar_pack(*arguments) -> None:
    command.main([str(argument) for argument in arguments])
    logging.disable(logging.NOTSET)  # main silences the log of its process


@pytest.fixture(scope="module")
def first_packed(made) -> Path:
    nar_pack(made.models["cmlm"], "--data", made.data, "--out", made.root / "packed")
    return made.root / "packed"


@pytest.fixture
def packed(first_packed, tmp_path) -> Path:
    """A folder of the cmlm, copied."""
    return Path(shutil.copytree(first_packed, tmp_path / "model"))


@pytest.mark.parametrize("name", ["ar", "heads", "bang", "cmlm", "ctc", "dag"])
def test_a_folder_translates_the_test_set_as_fairseq_generate_does(made, name, tmp_path, monkeypatch):
    viterbi = {"dag_decode": "joint-viterbi", "length_beam": 3}  # lookahead leaves a random graph at once
    options = {"ctc": {}, "dag": viterbi}.get(name, {"max_len_a": 0, "max_len_b": 15})
    out = run("fairseq-generate", made.data, made.models[name], **options)
    wanted = [nbest[0][1] for _, nbest in sorted(hypotheses(out).items())]
    nar_pack(made.models[name], "--data", made.data, "--out", tmp_path / "packed")
    shutil.move(tmp_path / "packed", tmp_path / "elsewhere")

    def unpickled(*args, **kwargs):
        raise AssertionError("something is unpickled")

    for owner, function in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, function, unpickled)
    found = from_pretrained(tmp_path / "elsewhere", cpu=True, **options).translate(GENERATED)
    assert [t.text for t in found] == wanted and len(set(wanted)) > 2


def test_tied_tensors_are_stored_once(made, packed):
    from safetensors import safe_open

    with safe_open(str(packed / folder.WEIGHTS), framework="pt") as file:
        stored, tied = set(file.keys()), json.loads(file.metadata()["tied"])
    tables = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    state = torch.load(made.models["cmlm"], weights_only=True)["model"]
    assert len(stored & tables) == 1 and tied.keys() == tables - stored and stored | tied.keys() == state.keys()
    weights = folder.read_weights(packed / folder.WEIGHTS)
    assert all(weights[name].equal(tensor) for name, tensor in state.items())


def test_half_precision_stays_half(made, tmp_path):
    state = torch.load(made.models["cmlm"], weights_only=True)
    state["model"] = {name: t.half() if t.is_floating_point() else t for name, t in state["model"].items()}
    torch.save(state, tmp_path / "half.pt")
    nar_pack(tmp_path / "half.pt", "--data", made.data, "--out", tmp_path / "model")
    weights = folder.read_weights(tmp_path / "model" / folder.WEIGHTS)
    assert {str(t.dtype) for t in weights.values() if t.is_floating_point()} == {"torch.float16"}
    half = from_pretrained(tmp_path / "half.pt", made.data, cpu=True, **SHORT).translate(LINES)
    assert from_pretrained(tmp_path / "model", cpu=True, **SHORT).translate(LINES) == half


def test_an_ar_checkpoint_without_a_mask_is_packed(made, tmp_path):
    state = torch.load(made.models["ar"], weights_only=True)
    words = len(dictionary(20))
    state["model"] = {
        n: t[:words].clone() if len(t.shape) and len(t) == words + 1 else t for n, t in state["model"].items()
    }
    torch.save(state, tmp_path / "old.pt")
    nar_pack(tmp_path / "old.pt", "--data", made.data, "--out", tmp_path / "model")
    found = from_pretrained(tmp_path / "model", cpu=True, **SHORT).translate(LINES)
    wanted = from_pretrained(made.models["ar"], made.data, cpu=True, **SHORT).translate(LINES)
    assert [t.text for t in found] == [t.text for t in wanted]


def test_paths_of_the_training_are_left_out(made, tmp_path):
    state = torch.load(made.models["cmlm"], weights_only=True)
    vars(state["cfg"]["model"]).update(save_dir="/data/secret", init_encoder_from="secret.pt")
    torch.save(state, tmp_path / "cmlm.pt")
    nar_pack(tmp_path / "cmlm.pt", "--data", made.data, "--out", tmp_path / "model")
    assert "secret" not in (tmp_path / "model" / folder.CONFIG).read_text()


FROM_GPUS = {  # what eight GPUs with half precision leave in a checkpoint
    "cpu": False,
    "fp16": True,
    "memory_efficient_fp16": True,
    "device_id": 3,
    "distributed_world_size": 8,
    "distributed_rank": 3,
    "distributed_backend": "nccl",
    "ddp_backend": "fully_sharded",
    "checkpoint_activations": True,
    "offload_activations": True,
    "min_params_to_wrap": 1,
    "tpu": False,
}


@pytest.mark.parametrize("name", ["ar", "cmlm", "ctc"])
def test_a_model_that_was_trained_on_gpus_is_packed_and_read_without_one(made, tmp_path, name):
    state = torch.load(made.models[name], weights_only=True)
    vars(state["cfg"]["model"]).update(FROM_GPUS)
    torch.save(state, tmp_path / "gpus.pt")
    nar_pack(tmp_path / "gpus.pt", "--data", made.data, "--out", tmp_path / "packed")
    found, wanted = (
        from_pretrained(*where, **SHORT if name != "ctc" else {}).translate(GENERATED)
        for where in ((tmp_path / "packed",), (made.models[name], made.data))
    )
    assert found == wanted


@pytest.mark.parametrize("value", [float("inf"), {"a": torch.ones(1)}])
def test_an_argument_that_json_has_not_is_named(made, tmp_path, value):
    state = torch.load(made.models["cmlm"], weights_only=True)
    state["cfg"]["model"].odd = value
    torch.save(state, tmp_path / "cmlm.pt")
    said = failure(tmp_path / "cmlm.pt", "--data", made.data, "--out", tmp_path / "model")
    kind = "inf" if isinstance(value, float) else "Tensor"
    assert said == f"{tmp_path / 'cmlm.pt'}: its model has an argument odd that is {kind}: it cannot be packed"
    assert [path.name for path in tmp_path.iterdir()] == ["cmlm.pt"]


def test_the_card_has_what_the_user_knows(made, tmp_path, packed):
    card = (packed / folder.CARD).read_text()
    assert "| languages | src to tgt |" in card and "cmlm_tiny" in card and "`mask_predict`" in card
    assert "BLEU" not in card and "measured by" not in card and 'from_pretrained("packed")' in card
    given = ("--bleu", "27.3 (13a)", "--command", "fairseq-generate bin |\n  nar-score - test.de")
    nar_pack(made.models["cmlm"], "--data", made.data, "--out", tmp_path / "other", *given)
    card = (tmp_path / "other" / folder.CARD).read_text()
    assert "| BLEU | 27.3 (13a) |" in card and "`fairseq-generate bin \\| nar-score - test.de`" in card


# -- sub-words ---------------------------------------------------------------------------------------------------------

SENTENCES = ["the small cat sleeps", "a cat sees the dog", "the dog sleeps", "small dogs see cats"] * 5


@pytest.fixture(scope="module")
def pieces(made) -> Namespace:
    """A SentencePiece model of 20 pieces, and a cmlm over them."""
    model, root = io.BytesIO(), made.root / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=23, model_type="bpe", minloglevel=2
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    symbols = Dictionary()
    for i in range(3, 23):
        symbols.add_symbol(processor.id_to_piece(i))
    root.mkdir()
    (root / "spm.model").write_bytes(model.getvalue())
    for language in ("src", "tgt"):
        symbols.save(str(root / f"dict.{language}.txt"))
    return Namespace(root=root, spm=root / "spm.model", model=save(root / "cmlm.pt", *MODELS["cmlm"]))


def test_raw_text_goes_in_and_out(made, pieces, tmp_path):
    languages = ("-s", "src", "-t", "tgt")
    nar_pack(pieces.model, "--data", pieces.root, "--spm", pieces.spm, "--out", tmp_path / "model", *languages)
    texts = [text[:9] for text in SENTENCES[:4]]
    translator = from_pretrained(tmp_path / "model", cpu=True, **SHORT)
    found = translator.translate(texts)
    given = {"bpe": "sentencepiece", "sentencepiece_model": str(pieces.spm), "source_lang": "src", "target_lang": "tgt"}
    assert found == from_pretrained(pieces.model, pieces.root, cpu=True, **given, **SHORT).translate(texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces.spm))
    plain = from_pretrained(pieces.model, pieces.root, cpu=True, source_lang="src", target_lang="tgt", **SHORT)
    encoded = plain.translate([" ".join(processor.encode(text, out_type=str)) for text in texts])
    assert [t.tokens for t in found] == [t.tokens for t in encoded]
    assert translator.text.decode(translator.encode("the small cat")) == "the small cat"  # one dictionary for both
    assert [t.text for t in found] == [t.text.replace(" ", "").replace("\u2581", " ").strip() for t in encoded]


def test_bpe_and_moses_are_in_the_folder(made, tmp_path):
    (tmp_path / "codes").write_text("#version: 0.2\nw 1</w>\nw 2</w>\n")
    flags = ("--bpe", "subword_nmt", "--bpe-codes", tmp_path / "codes", "--tokenizer", "moses")
    nar_pack(made.models["cmlm"], "--data", made.data, "--out", tmp_path / "model", *flags)
    (tmp_path / "codes").unlink()
    translator = from_pretrained(tmp_path / "model", cpu=True, **SHORT)
    assert translator.encode("w1 w2 w3").tolist() == [5, 6, 3, 3, 2]  # w@@ 3
    config = json.loads((tmp_path / "model" / folder.CONFIG).read_text())
    assert config["options"] == {"bpe": "subword_nmt", "tokenizer": "moses", "bpe_separator": "@@"}
    assert config["option_files"] == {"bpe_codes": "bpecodes"}
    assert len(translator.translate(["w1, w2!"])) == 1


# -- what cannot be packed ---------------------------------------------------------------------------------------------


def failure(*arguments) -> str:
    """The one line of a nar-pack that must fail."""
    with pytest.raises(SystemExit) as stop:
        nar_pack(*arguments)
    logging.disable(logging.NOTSET)
    said = stop.value.code
    assert isinstance(said, str) and said.startswith("nar-pack: ") and "\n" not in said
    return said[len("nar-pack: ") :]


def test_files_of_one_name_stand_side_by_side(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hf_byte_bpe").write_text("no option's file, although it has the name of one's value")
    options = {"bpe": "hf_byte_bpe"}
    for option, name in (("bpe_vocab", "words"), ("bpe_merges", "words"), ("bpe_codes", "dict.src.txt")):
        Path(option).mkdir()
        Path(option, name).write_text(option)
        options[option] = f"{option}/{name}"
    Path("bpe_vocab_file").write_text("bpe_vocab_file")
    Path("bpe_vocab_file").rename("README.md")
    options["bpe_vocab_file"] = "README.md"
    dictionaries = {language: Path(made.data, f"dict.{language}.txt") for language in ("src", "tgt")}
    Path("model").mkdir()
    folder.write(Path("model"), folder.Contents({}, {"x": torch.zeros(1)}, dictionaries, options))
    config = folder.read(Path("model"))
    assert config["options"] == {"bpe": "hf_byte_bpe"} and folder.CARD not in config["files"]
    files = {option: Path("model", file).read_text() for option, file in config["option_files"].items()}
    assert files == {option: option for option in options if option != "bpe"}
    assert Path("model", "dict.src.txt").read_bytes() == dictionaries["src"].read_bytes()


def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(made, tmp_path):
    cmlm, data, out = made.models["cmlm"], ("--data", made.data), ("--out", tmp_path / "model")
    (tmp_path / "there").mkdir()
    (tmp_path / "codes").write_text("#version: 0.2\na b c d\n")
    codes = ("--bpe", "subword_nmt", "--bpe-codes")
    (tmp_path / "cut.pt").write_bytes(cmlm.read_bytes()[:5000])
    for arguments, said in (
        (("no.pt", *data, *out), "no checkpoint at no.pt: check the path that you gave"),
        ((f"{cmlm}:{cmlm}", *data, *out), f"{cmlm}:{cmlm} is an ensemble: a folder holds one model; nar-average "),
        ((cmlm, "--data", "nowhere", *out), "no data folder 'nowhere'"),
        ((cmlm, *data, "--out", tmp_path / "there"), f"--out {tmp_path / 'there'} is there already: give "),
        (
            (cmlm, *data, "--out", tmp_path / "no" / "model"),
            f"--out {tmp_path / 'no' / 'model'}: no folder '{tmp_path / 'no'}'",
        ),
        ((tmp_path / "cut.pt", *data, *out), f"{tmp_path / 'cut.pt'} is truncated or not a PyTorch checkpoint"),
        ((cmlm, *data, *out, "--spm", "no.model"), "--bpe sentencepiece: "),
        ((cmlm, *data, *out, "--spm", made.data), f"--bpe sentencepiece cannot read {made.data}: give the file that"),
        ((cmlm, *data, *out, "--spm", cmlm), f"--bpe sentencepiece cannot read {cmlm}: give the file that it was"),
        ((cmlm, *data, *out, *codes, tmp_path / "codes"), f"--bpe subword_nmt cannot read {tmp_path / 'codes'}: give"),
        ((cmlm, *data, *out, *codes, cmlm), f"--bpe subword_nmt cannot read {cmlm}: give the file that it was"),
        ((cmlm, *data, *out, "--iterations", "4"), "--iterations is no option of nar-pack: give it to from_pretrained"),
        ((cmlm, *data, *out, "--frobnicate"), "unrecognized arguments: --frobnicate"),
    ):
        assert failure(*arguments).startswith(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "cut.pt", "there"]


def test_a_packing_that_fails_in_the_middle_leaves_nothing(made, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.folder, "card", full)  # everything else is written by then
    assert "No space left on device" in failure(made.models["cmlm"], "--data", made.data, "--out", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# -- folders that cannot be read ---------------------------------------------------------------------------------------


def change(packed: Path, **values) -> None:
    """Set entries of a folder's config.json."""
    config = json.loads((packed / folder.CONFIG).read_text())
    (packed / folder.CONFIG).write_text(json.dumps({**config, **values}))


def refused(packed: Path, **options) -> str:
    return refusal(lambda: from_pretrained(packed, cpu=True, **options)).replace(str(packed), "F")


def test_a_missing_or_foreign_file_is_named(packed):
    for name in (folder.WEIGHTS, "dict.src.txt", "dict.tgt.txt"):
        content = (packed / name).read_bytes()
        (packed / name).unlink()
        assert refused(packed) == f"F has no {name}: copy the whole folder again"
        (packed / name).write_bytes(content[: len(content) // 2])
        again = "copy the folder again, or pack the checkpoint again"
        assert refused(packed) == f"F/{name} is not the file that nar-pack wrote: {again}"
        (packed / name).write_bytes(content)
    (packed / folder.CARD).write_text("mine")  # a card may be changed
    assert len(from_pretrained(packed, cpu=True).translate(["w1"])) == 1
    assert refusal(lambda: from_pretrained(packed, packed)).endswith("has dictionaries of its own: leave it out")
    (packed / folder.CONFIG).unlink()
    assert refused(packed) == "F has no config.json: give a folder that nar-pack wrote, or a checkpoint file"


def test_a_config_of_another_kind_or_version_is_named(packed):
    text = (packed / folder.CONFIG).read_text()
    again = "copy the folder again, or pack the checkpoint again"
    change(packed, format=2)
    assert refused(packed) == "F has the format 2, this nar_plugins reads 1: pack the checkpoint with this version"
    for content, said in (
        (text[:100], "F/config.json is no JSON ("),
        ("[]", "F/config.json is not of nar-pack: it has no 'format'; give a folder that nar-pack wrote"),
        ('{"model_type": "bert"}', "F/config.json is not of nar-pack: it has no 'format'"),
        ('{"format": 1}', f"F/config.json has no 'model': {again}"),
    ):
        (packed / folder.CONFIG).write_text(content)
        assert refused(packed).startswith(said)
    (packed / folder.CONFIG).write_text(text)
    files = json.loads(text)["files"]
    model = json.loads(text)["model"]
    for changed, said in (
        ({"files": {}}, "F/config.json does not name model.safetensors in 'files': pack the checkpoint again"),
        ({"files": {**files, "../x": "0"}}, "F/config.json names the file ../x: all files stand in the folder itself"),
        ({"languages": ["src"]}, "F/config.json has the languages ['src']: a source and a target are needed"),
        ({"options": {"rescorer": "x.pt"}}, "F/config.json sets rescorer, which is no option of sub-words: "),
        ({"option_files": {"bpe_codes": "codes"}}, "F/config.json names codes for bpe_codes, and not in 'files': "),
        ({"model": {**model, "_name": "gpt9"}}, "F holds a model 'gpt9', which is not registered here: "),
        ({"model": {"arch": "cmlm_tiny", "encoder_embed_dim": 30}}, "F/config.json: its model cannot be built: "),
    ):
        (packed / folder.CONFIG).write_text(text)
        change(packed, **changed)
        assert refused(packed).startswith(said)


def test_weights_that_do_not_fit_are_named(made, packed):
    weights = folder.read_weights(packed / folder.WEIGHTS)
    name = "decoder.layers.0.fc1.weight"

    def replace(changed) -> None:
        folder.write_weights(changed, packed / folder.WEIGHTS)
        config = json.loads((packed / folder.CONFIG).read_text())
        change(packed, files={**config["files"], folder.WEIGHTS: fingerprint(packed / folder.WEIGHTS)})

    replace({n: t for n, t in weights.items() if n != name})
    assert refused(packed) == f'F/model.safetensors does not fit config.json: Missing key(s) in state_dict: "{name}".'
    replace({**weights, name: torch.zeros(3, 16)})
    assert refused(packed).startswith(f"F/model.safetensors does not fit config.json: size mismatch for {name}: ")
    replace({**weights, "more": torch.zeros(1)})
    assert 'Unexpected key(s) in state_dict: "more"' in refused(packed)
    (packed / folder.WEIGHTS).write_bytes((packed / folder.WEIGHTS).read_bytes()[:300])
    config = json.loads((packed / folder.CONFIG).read_text())
    change(packed, files={**config["files"], folder.WEIGHTS: fingerprint(packed / folder.WEIGHTS)})
    assert refused(packed) == "F/model.safetensors is truncated or no safetensors file: copy the folder again"


def test_a_folder_takes_the_options_of_a_checkpoint(made, packed):
    assert refused(packed, iteration=4) == "there is no option iteration: did you mean iterations?"
    four = from_pretrained(packed, cpu=True, iterations=4, **SHORT).translate(LINES[:2])
    assert four == from_pretrained(made.models["cmlm"], made.data, cpu=True, iterations=4, **SHORT).translate(LINES[:2])
    assert [t.passes for t in four] == [4, 4]
    kept = {"encoder_layers_to_keep": "0", "decoder_layers_to_keep": "0"}  # all that there are
    assert from_pretrained(packed, cpu=True, iterations=4, model_overrides=kept, **SHORT).translate(LINES[:2]) == four
