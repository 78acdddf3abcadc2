"""Translations from Python: those of fairseq's commands, in order, from any number of threads; errors are one line."""

import itertools
import logging
import math
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import hypotheses
from saved import corpus, run, save

from nar_plugins.data.whole_file import folder_written_whole
from nar_plugins.hub import Batcher, from_pretrained
from nar_plugins.hub import translator as translator_module
from nar_plugins.hub.options import REFUSED, option_names, parse, text_options
from nar_plugins.measure.systems import System
from nar_plugins.modules.fast.forms import int8_lacks

FEW = ("--max-source-positions", "12", "--max-target-positions", "40")
MODELS = {
    "ar": ("transformer_tiny", *FEW),
    "heads": ("blockwise_tiny", *FEW),
    "bang": ("bang_tiny", *FEW),
    "cmlm": ("cmlm_tiny", *FEW),
    "nat": ("nat_tiny", *FEW),
    "uniform": ("nat_tiny", "--source-copy", "uniform", *FEW),
    "ctc": ("nat_tiny", "--ctc", *FEW),
    "dag": ("dag_tiny", *FEW[:2], "--max-target-positions", "96"),
}
# fairseq's limit of the length follows the longest source of a batch, which differs between the two
SHORT = {"max_len_a": 0, "max_len_b": 15}
SYSTEMS = {
    "beam": ("ar", {**SHORT, "nbest": 3}),
    "blockwise": ("heads", {**SHORT, "beam": 1}),
    "drafted": ("ar", {**SHORT, "generator": "blockwise", "drafter_path": "cmlm"}),
    "adaptive": ("bang", {**SHORT}),
    "ar": ("bang", {**SHORT, "bang_policy": "ar"}),
    "mask_predict": ("cmlm", {**SHORT, "iterations": 3, "nbest": 2}),
    "fertilities": ("nat", {**SHORT}),
    "noisy_parallel": ("nat", {**SHORT, "generator": "noisy_parallel", "rescorer": "ar"}),
    "lengths": ("uniform", {**SHORT, "length_beam": 3, "dedup": "token"}),
    "ctc": ("ctc", {}),
    "ctc beam": ("ctc", {"ctc_beam": 4, "nbest": 2}),
    "joint viterbi": ("dag", {"dag_decode": "joint-viterbi", "length_beam": 3, "nbest": 2}),
}
LINES = ["w1 w2 w3", "w4", "", "w9 w9 w9 w2 w1 w7 w8 w1", "unheard w3", "w5 w6 w5 w6", "w11 w12", "w3 <pad> w3 <mask>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("hub")
    data = corpus(root / "text", [(line, "w1") for line in LINES])
    models = {
        name: save(root / f"{name}.pt", *flags, scale=8.0 if name == "bang" else 4.0) for name, flags in MODELS.items()
    }
    return Namespace(root=root, data=data, models=models, loaded={})


def options_of(made, system: str) -> tuple:
    """The checkpoint of a system, and its options."""
    model, options = SYSTEMS[system]
    paths = {name: str(made.models[options[name]]) for name in ("drafter_path", "rescorer") if name in options}
    return made.models[model], {**options, **paths}


def load(made, system: str, **more):
    """The Translator of a system; without further options the same one in every call."""
    path, options = options_of(made, system)
    if more:
        return from_pretrained(path, made.data, cpu=True, **{**options, **more})
    if system not in made.loaded:
        made.loaded[system] = from_pretrained(path, made.data, cpu=True, **options)
    return made.loaded[system]


@pytest.mark.parametrize("system", SYSTEMS)
def test_translations_are_those_of_fairseq_interactive(made, system):
    path, options = options_of(made, system)
    file = made.root / "lines"
    file.write_text("".join(f"{line}\n" for line in LINES))
    out = run("fairseq-interactive", made.data, path, input=str(file), buffer_size=100, batch_size=4, **options)
    wanted = hypotheses(out)
    found = load(made, system).translate(LINES)
    assert len({text for text, *_ in found}) > 3
    for i, translation in enumerate(found):
        nbest = [translation, *translation.alternatives]
        assert [one.text for one in nbest] == [text for _, text in wanted[i]]
        assert [one.score for one in nbest] == pytest.approx([float(s) * math.log(2) for s, _ in wanted[i]], abs=1e-4)
        for one in nbest:
            assert one.tokens == one.text.split() and 0 <= one.passes <= 42
        assert not any(one.alternatives for one in translation.alternatives)


def test_passes_are_those_of_the_decoder(made):
    assert [t.passes for t in load(made, "mask_predict").translate(["w1 w2", ""])] == [3, 0]
    assert [t.passes for t in load(made, "ctc").translate(["w1", "w1 w2 w3"])] == [1, 1]
    one_by_one = load(made, "beam").translate(LINES[:2])
    assert [t.passes for t in one_by_one] == [len(t.tokens) + 1 for t in one_by_one]


@pytest.mark.parametrize("batch_size, window", [(1, 1), (3, 2), (2, 5), (100, 100)])
def test_the_order_is_that_of_the_texts(made, batch_size, window):
    translator = load(made, "mask_predict")
    wanted = [translator.translate([line])[0].text for line in LINES]
    found = translator.translate(tuple(LINES), batch_size=batch_size, window=window)
    assert isinstance(found, list) and [t.text for t in found] == wanted
    stream = translator.translate(iter(LINES), batch_size=batch_size, window=window)
    assert not isinstance(stream, list) and [t.text for t in stream] == wanted
    assert translator.translate([]) == [] and list(translator.translate(iter([]))) == []


def test_an_iterator_is_read_by_the_window(made):
    read = []
    texts = (read.append(i) or f"w{i % 9}" for i in itertools.count())
    stream = load(made, "fertilities").translate(texts, window=5)
    assert read == []
    next(stream)
    assert len(read) == 5
    list(itertools.islice(stream, 5))
    assert len(read) == 10


def test_a_progress_bar_counts_the_texts(made, capsys):
    load(made, "fertilities").translate(LINES, progress=True, window=4)
    assert "8/8" in capsys.readouterr().err
    load(made, "fertilities").translate(LINES)
    assert capsys.readouterr().err == ""


def test_a_history_is_in_the_hypotheses(made):
    translator = load(made, "mask_predict", retain_iter_history=True)
    (nbest,) = translator.hypotheses(["w1 w2 w3"])
    assert len(nbest[0]["history"]) == 3
    assert translator.text.symbols(nbest[0]["history"][-1]["tokens"]) == translator.translation(nbest).tokens


def texts_of(translations) -> list:
    return [(each.text, each.tokens) for each in translations]


@pytest.mark.parametrize("system", ["beam", "drafted", "adaptive", "noisy_parallel"])
def test_threads_get_the_answers_of_one(made, system, monkeypatch):
    translator = load(made, system)
    texts = [f"{line} w{i}" for i, line in enumerate(LINES * 2)]
    parts = [texts[i % 9 : i % 9 + 4] for i in range(32)]
    wanted = [translator.translate(part, batch_size=3) for part in parts[:9]]
    decoder, inside, most = translator.decoder, [], []

    def watched(sample):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)  # another thread runs
        found = decoder(sample)
        inside.pop()
        return found

    watched.generator = decoder.generator
    monkeypatch.setattr(translator, "decoder", watched)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda part: translator.translate(part, batch_size=3), parts))
    expected = [wanted[i % 9] for i in range(32)]
    assert [texts_of(part) for part in found] == [texts_of(part) for part in expected]
    if system in ("drafted", "adaptive"):  # how many tokens are drafted depends on the calls before, and rounding on it
        for ours, theirs in zip(found, expected):
            assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-5)
    else:
        assert found == expected
    assert len(most) == 32 * 2 and max(most) == 1  # generators keep state while they decode


def test_threads_load_one_after_another(made, monkeypatch):
    """Hydra's state is the process's: of two that load at once, one failed."""
    inside, most, convert = [], [], translator_module.convert_namespace_to_omegaconf

    def watched(arguments):
        inside.append(arguments)
        most.append(len(inside))
        time.sleep(0.05)
        found = convert(arguments)
        inside.pop()
        return found

    monkeypatch.setattr(translator_module, "convert_namespace_to_omegaconf", watched)
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: from_pretrained(made.models["cmlm"], made.data, cpu=True, **SHORT), range(3)))
    assert most == [1, 1, 1]
    assert len({one.translate(LINES[:1])[0].text for one in loaded}) == 1


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_other_types_decode_as_they_do_in_fairseq_generate(made, name):
    if name == "int8" and int8_lacks(torch.device("cpu")):
        pytest.skip(int8_lacks(torch.device("cpu")))
    options = {**SHORT, "iterations": 2, "decode_dtype": name}
    file = made.root / f"lines {name}"
    file.write_text("".join(f"{line}\n" for line in LINES))
    out = run(
        "fairseq-interactive", made.data, made.models["cmlm"], input=str(file), buffer_size=8, batch_size=8, **options
    )
    found = from_pretrained(made.models["cmlm"], made.data, cpu=True, **options).translate(LINES)
    assert [t.text for t in found] == [nbest[0][1] for _, nbest in sorted(hypotheses(out).items())]


def test_an_ensemble_is_two_checkpoints(made):
    second = save(made.root / "second.pt", *MODELS["cmlm"], seed=2)
    both = from_pretrained(f"{made.models['cmlm']}:{second}", made.data, cpu=True, **SHORT).translate(LINES)
    first = from_pretrained(made.models["cmlm"], made.data, cpu=True, **SHORT).translate(LINES)
    assert [t.text for t in both] != [t.text for t in first] and len(both) == len(LINES)


def test_a_path_that_is_none_is_named():
    assert refusal(lambda: from_pretrained(None)).startswith("path is NoneType: give a checkpoint, or a folder of")


def test_dictionaries_are_found_beside_the_checkpoint(made, tmp_path):
    path = save(tmp_path / "cmlm.pt", *MODELS["cmlm"])
    said = f"{path}: no dictionaries beside it: give data=FOLDER, the folder with dict.{{LANGUAGE}}.txt"
    assert refusal(lambda: from_pretrained(path)) == said
    for language in ("src", "tgt"):
        (tmp_path / f"dict.{language}.txt").write_bytes((made.data / f"dict.{language}.txt").read_bytes())
    languages = {"source_lang": "src", "target_lang": "tgt"}
    found = from_pretrained(path, cpu=True, **languages, **SHORT).translate(LINES)
    assert found == from_pretrained(made.models["cmlm"], made.data, cpu=True, **SHORT).translate(LINES)


# -- bad input ---------------------------------------------------------------------------------------------------------


def refusal(call) -> str:
    """The one-line message of a ValueError."""
    with pytest.raises(ValueError) as error:
        call()
    said = str(error.value)
    assert said and "\n" not in said
    return said


@pytest.mark.parametrize(
    "options, said",
    [
        ({"iteration": 4}, "there is no option iteration: did you mean iterations?"),
        ({"length_beams": 4}, "there is no option length_beams: did you mean length_beam?"),
        ({"xyzzy": 1}, "there is no option xyzzy: the options are flags of fairseq-generate"),
        ({"batch_size": 1}, "there is no option batch_size: "),
        ({"iterations": "four"}, 'iterations is "four": give a whole number'),
        ({"iterations": None}, "iterations is null: give a whole number"),
        ({"iterations": 0}, "--iterations 0: at least one pass of the decoder is needed"),
        ({"decode_dtype": "int4"}, 'decode_dtype is "int4": choose float32, bfloat16, float16, int8, auto'),
        ({"generator": "bang"}, "--generator bang cannot decode a CmlmModel: use --generator auto or mask_predict"),
        ({"generator": "magic"}, "--generator magic does not exist: choose auto, beam, "),
        ({"verify_block": 3}, "--verify-block is no option of --generator mask_predict: leave it out"),
        ({"prefix_size": 2}, "prefix_size is no option here: there are no references"),
        ({"gold_length": True}, "gold_length is no option here: there are no references"),
        ({"source_lang": "xx"}, "no dictionary "),
        ({"bpe": "sentencepiece"}, "--bpe sentencepiece needs --sentencepiece-model"),
        ({"bpe": "sentencepiece", "sentencepiece_model": "no.model"}, "--bpe sentencepiece: "),
        ({"bpe": "morse"}, "argument --bpe: invalid choice: 'morse'"),
        ({"nbest": 0}, "nbest is 0: give a whole number from 1 up"),
        ({"nbest": -1}, "nbest is -1: give a whole number from 1 up"),
        ({"model_overrides": "{"}, "--model-overrides '{' is no dictionary such as"),
        ({"model_overrides": "dropout"}, "--model-overrides 'dropout' is no dictionary such as"),
        ({"model_overrides": "[1]"}, "--model-overrides '[1]' is no dictionary such as"),
        ({"fp16": "yes"}, "argument --fp16: ignored explicit argument 'yes'"),
        ({"rescorer": "no.pt"}, "no checkpoint at no.pt: check the path that you gave"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_one_line(made, options, said):
    assert refusal(lambda: from_pretrained(made.models["cmlm"], made.data, cpu=True, **options)).startswith(said)


def test_a_checkpoint_or_data_that_is_not_there_is_one_line(made):
    assert (
        refusal(lambda: from_pretrained("no.pt", made.data)) == "no checkpoint at no.pt: check the path that you gave"
    )
    said = "no checkpoint at no.pt: check the path that you gave"
    assert refusal(lambda: from_pretrained(f"{made.models['cmlm']}:no.pt", made.data)) == said
    said = "no data folder 'nowhere': binarise the text with fairseq-preprocess first"
    assert refusal(lambda: from_pretrained(made.models["cmlm"], "nowhere")) == said


def test_a_text_that_cannot_be_translated_is_named(made):
    translator = load(made, "mask_predict")
    long = " ".join(["w1"] * 12)
    places = "split it into sentences, or load with truncate_source=True"
    for texts, said in (
        ("w1", "texts is str: give a list of texts, such as ['...'], or an iterator"),
        (b"w1", "texts is bytes: give a list of texts, such as ['...'], or an iterator"),
        (None, "texts is NoneType: give a list of texts, such as ['...'], or an iterator"),
        (["w1", 2], "text 2 is int: give a string"),
        (["w1", "\ud800"], "text 2 is no Unicode text (character 0: surrogates not allowed)"),
        (["w1", None], "text 2 is NoneType: give a string"),
        (["w1", "w2", long], f"text 3 has 13 tokens, the models have 12 source positions: {places}"),
        (["w" * 10_000 + " w1" * 3000], f"text 1 has 3002 tokens, the models have 12 source positions: {places}"),
    ):
        assert refusal(lambda texts=texts: translator.translate(texts)) == said
    stream = translator.translate(iter(["w1", "w2", "w3", long]), window=2)
    assert len([next(stream), next(stream)]) == 2  # what stands before is not lost
    assert refusal(lambda: next(stream)).startswith("text 4 has 13 tokens")
    for name in ("batch_size", "window"):
        said = f"{name} is 0: give a whole number from 1 up"
        assert refusal(lambda name=name: translator.translate(["w1"], **{name: 0})) == said


def test_texts_that_are_too_long_are_cut_where_that_is_asked(made):
    found = load(made, "mask_predict", truncate_source=True).translate([" ".join(["w1"] * n) for n in (11, 12, 500)])
    assert found[0] == found[1] == found[2]


def test_empty_texts_and_unknown_scripts_have_a_translation(made):
    texts = ["", "   ", "\n", "\u3053\u3093\u306b\u3061\u306f", "w1 \u0000 w2", "\U0001f600", "w1\nw2", "w1 w2"]
    found = load(made, "mask_predict").translate(texts)
    assert [t[:4] for t in found[:3]] == [("", 0.0, [], 0)] * 3
    assert found[3] == found[5] and found[3].passes == 3  # both are <unk>
    assert found[6] == found[7]  # a line end is a blank
    assert len(load(made, "blockwise").translate(texts)) == len(texts)  # as greedy search has it, blank lines too


def test_every_option_is_one_of_the_parser(made):
    """A name that the parser does not know would be refused as a flag that nobody typed."""
    parser = parse([str(made.data), "--path", "x.pt"])[1]
    known = {string for action in parser._actions for string in action.option_strings}
    names = {f"--{name.replace('_', '-')}" for name in option_names() - text_options()}
    assert names <= known and not REFUSED.keys() & option_names()


# -- the batcher -------------------------------------------------------------------------------------------------------


def test_the_batcher_gives_each_thread_its_own_answers(made, monkeypatch):
    translator = load(made, "mask_predict")
    texts = [f"w{i % 20} w{i % 7} w{i % 3}" for i in range(160)]
    wanted = [t.text for t in translator.translate(texts)]
    sizes, decode = [], translator.decode

    def counted(sentences, batch_size):
        sizes.append(len(sentences))
        time.sleep(0.005)  # others arrive
        return decode(sentences, batch_size)

    monkeypatch.setattr(translator, "decode", counted)
    with Batcher(translator, batch_size=16) as batcher, ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda i: batcher.translate(texts[i : i + 5]), range(0, 160, 5)))
    assert [t.text for part in found for t in part] == wanted
    assert sum(sizes) == 160 and 1 < max(sizes) <= 16


def test_the_batchers_thread_loads_the_model_that_it_decodes_with(made, monkeypatch):
    """A thread that has loaded a model and lives on would make the decoding slower."""
    threads = {}

    def loaded():
        threads["load"] = threading.current_thread()
        translator = from_pretrained(made.models["cmlm"], made.data, cpu=True, **SYSTEMS["mask_predict"][1])
        decode = translator.decode

        def noted(*given):
            threads["decode"] = threading.current_thread()
            return decode(*given)

        monkeypatch.setattr(translator, "decode", noted)
        return translator

    with Batcher(loaded) as batcher:
        found = batcher.translate(["w1 w2 w3", "w4"])
    assert threads == {"load": batcher.thread, "decode": batcher.thread}
    assert [t.text for t in found] == [t.text for t in load(made, "mask_predict").translate(["w1 w2 w3", "w4"])]
    missing = partial(from_pretrained, made.root / "no.pt", made.data)
    assert "no.pt" in refusal(lambda: Batcher(missing))


def test_the_batcher_is_given_several_texts(made):
    with Batcher(load(made, "mask_predict")) as batcher:
        for texts, name in (("w1", "str"), (b"w1", "bytes"), (None, "NoneType")):
            said = f"texts is {name}: give a list of texts, such as ['...']"
            assert refusal(lambda texts=texts: batcher.translate(texts)) == said
        assert batcher.translate([]) == []


def test_an_error_of_one_thread_is_not_that_of_another(made, monkeypatch):
    translator = load(made, "mask_predict")
    decode = translator.decode

    def fails_for_w9(sentences, batch_size):
        if any(13 in sentence.tolist() for sentence in sentences):  # w9
            raise RuntimeError("w9")
        return decode(sentences, batch_size)

    monkeypatch.setattr(translator, "decode", fails_for_w9)
    with Batcher(translator) as batcher:
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(batcher.translate, [f"w{i}"]) for i in range(12)]
            long = pool.submit(batcher.translate, ["w1", "w1 " * 50])
        assert [answer.exception() is None for answer in answers] == [i != 9 for i in range(12)]
        assert str(answers[9].exception()) == "w9"
        assert str(long.exception()).startswith("text 2 has 51 tokens")
        assert batcher.translate([]) == [] and refusal(lambda: batcher.translate("w1")).startswith("texts is str")
    assert refusal(lambda: batcher.translate(["w1"])) == "this Batcher is closed"
    batcher.close()
    assert refusal(lambda: Batcher(translator, batch_size=0)).startswith("batch_size 0")


def test_closing_answers_what_waits(made, monkeypatch):
    translator = load(made, "mask_predict")
    started, go, decode = threading.Event(), threading.Event(), translator.decode

    def held(sentences, batch_size):
        started.set()
        go.wait(10)
        return decode(sentences, batch_size)

    monkeypatch.setattr(translator, "decode", held)
    batcher = Batcher(translator)
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(batcher.translate, ["w1"])]
        started.wait(10)
        answers += [pool.submit(batcher.translate, [f"w{i}"]) for i in range(2, 8)]
        while batcher.jobs.qsize() < 6:
            time.sleep(0.001)
        closing = pool.submit(batcher.close)
        go.set()
        assert [len(answer.result(10)) for answer in answers] == [1] * 7
        closing.result(10)


# -- one loader --------------------------------------------------------------------------------------------------------


def test_nar_bench_outputs_the_same_texts(made):
    flags = "--cpu -s src -t tgt --iterations 3 --max-len-b 15".split()
    system = System("cmlm", str(made.models["cmlm"]), str(made.data), flags)
    found = load(made, "mask_predict").translate(LINES)
    assert system.output(4).text == [t.text for t in found]
    logging.disable(logging.NOTSET)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with folder_written_whole(tmp_path / "new") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "file"]
    with pytest.raises(KeyError):
        with folder_written_whole(tmp_path / "other") as folder:
            (folder / "file").write_text("text")
            raise KeyError
    with pytest.raises(OSError):
        with folder_written_whole(tmp_path / "new"):
            pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "new"]
