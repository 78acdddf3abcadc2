"""nar-bench on real checkpoints: flags of one word, rows that cannot be compared, everything said before the
decoding.
"""

import importlib.util
import json
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import rival_double
import torch
from conftest import ROOT, hypotheses, random_sentences, write_pairs
from in_process import here, own_refusal

from nar_plugins.cli import bench
from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.measure import speed
from nar_plugins.measure.machine import counts_memory, memory, restart_peak
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import load_rows
from nar_plugins.measure.systems import System
from nar_plugins.tasks.translation import NarTranslationTask

TASK = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
TRAIN = (
    *TASK,
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--max-tokens",
    "300",
    "--max-update",
    "1",
    "--num-workers",
    "0",
    "--no-progress-bar",
    "--share-all-embeddings",
    "--max-source-positions",
    "30",
    "--max-target-positions",
    "30",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Binarised pairs whose test targets hold words that the dictionary lacks, an AR and a CMLM checkpoint."""
    root = tmp_path_factory.mktemp("bench")
    train, test = ([(s, s) for s in random_sentences(count, seed)] for count, seed in ((60, 1), (9, 2)))
    test = [(s, f"{t} rare{i} words and {t}") for i, (s, t) in enumerate(test)]
    for split, pairs in (("train", train), ("valid", train[:9]), ("test", test)):
        write_pairs(root, pairs, split)
    splits = [f"--{split}pref={root / split}" for split in ("train", "valid", "test")]
    here("fairseq-preprocess", "-s", "src", "-t", "tgt", "--joined-dictionary", *splits, "--destdir", root / "bin")
    ar = ("--arch", "transformer_tiny", "--criterion", "cross_entropy", "--save-dir", root / "ar")
    cmlm = ("--arch", "cmlm_tiny", "--criterion", "nar_loss", "--save-dir", root / "cmlm")
    here("fairseq-train", root / "bin", *TRAIN, *ar)
    validation = ("--eval-bleu", "--eval-bleu-tokenize", "char", "--eval-bleu-args", '{"iterations": 1}')
    here("fairseq-train", root / "bin", *TRAIN, *cmlm, *validation)
    return SimpleNamespace(
        data=str(root / "bin"),
        ar=str(root / "ar" / "checkpoint_last.pt"),
        cmlm=str(root / "cmlm" / "checkpoint_last.pt"),
        text=str(root / "test.tgt"),
    )


refused = partial(own_refusal, bench.main)
ct2 = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")


@pytest.fixture
def undecoded(monkeypatch):
    """Fails the test as soon as a sentence is decoded."""
    monkeypatch.setattr(System, "decode", lambda *args: pytest.fail("a sentence was decoded"))


QUICK = ("--batch-sizes", "1,3", "--sentences", "2", "--repeats", "1")


def test_one_word_is_enough_for_flags_and_one_number_for_all_batch_sizes(made, capsys, tmp_path):
    systems = ("--system", "gold", made.cmlm, "--gold-length", "--system", "AR", made.ar, "--max-len-b 4")
    page = ("--examples", str(tmp_path / "page.md"), "--examples-count", "3", "--reference", made.text)
    bench.main([made.data, *systems, "--flags", "--cpu", *QUICK, *page])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and "sent/s, batch 1 " in rows[0] and "sent/s, batch 3 " in rows[0]
    sources, references = (Path(made.text).with_suffix(end).read_text().splitlines() for end in (".src", ".tgt"))
    text = (tmp_path / "page.md").read_text()
    assert re.findall("^## Sentence (.*)$", text, re.M) == ["0", "3", "6"]
    assert re.findall(r"^\| source +\| (.*?) +\|$", text, re.M) == [sources[i] for i in (0, 3, 6)]
    assert re.findall(r"^\| reference +\| (.*?) +\|$", text, re.M) == [references[i] for i in (0, 3, 6)]
    assert len(re.findall(r"^\| (gold|AR) +\| w", text, re.M)) == 6


def test_what_stands_where_flags_are_missing_is_no_flags():
    parser = bench.build_parser()
    words = ["bin", "--system", "A", "a.pt", "--output", "x", "--flags", "--cpu"]
    assert bench.shield_flags(words, parser) == [*words[:-1], " --cpu"]
    assert bench.shield_flags(["bin", "--system", "A", "a.pt", "--cpu"], parser)[-1] == " --cpu"
    assert bench.shield_flags(["--system", "A"], parser) == ["--system", "A"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--repeats", "0"), "--repeats 0: at least 1"),
        (("--repeats", "1,2"), "--repeats 1,2: one number"),
        (("--batch-sizes", "0"), "--batch-sizes 0: at least 1"),
        (("--batch-sizes", "1,8,1"), "--batch-sizes 1,8,1: give every size once"),
        (("--batch-sizes", "1,x"), "--batch-sizes 1,x: whole numbers"),
        (("--sentences", "-5"), "--sentences -5: at least 0"),
        (("--sentences=-5",), "--sentences -5: at least 0"),
        (("--sentences", "1,2,3"), "--sentences 1,2,3: one number for all --batch-sizes, or one for each (2)"),
        (("--sentences", ""), "--sentences : whole numbers"),
        (("--reference", "no.txt"), "no file no.txt"),
    ],
)
def test_numbers_and_files_are_looked_at_before_any_checkpoint(flags, said):
    assert said in refused("no data", "--system", "A", "no.pt", "", *flags)


def test_as_many_sentences_as_ever_are_timed_by_default():
    args = bench.build_parser().parse_args(["bin", "--system", "A", "a.pt", ""])
    assert bench.timings(args) == ([(1, 100), (32, 0)], 3)
    args.batch_sizes, args.sentences = "8,1,32", "7"
    assert bench.timings(args) == ([(8, 7), (1, 7), (32, 7)], 3)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--gen-subset valid", "--system B has --gen-subset valid, A has test"),
        ("--prefix-size 2", "--system B has --prefix-size 2, A has 0"),
        ("-s tgt -t src", "--system B has --source-lang tgt, A has src"),
        ("--remove-bpe", "--system B has --remove-bpe subword_nmt, A has None"),
        ("--batch-size 3", "--system B: --batch-size: nar-bench makes its own batches: give it --batch-sizes"),
        ("--max-tokens 50", "--system B: --max-tokens: nar-bench makes"),
        ("--path x.pt", "--system B: --path x.pt: the checkpoint stands"),
        ("--skip-invalid-size-inputs-valid-test", "--system B: --skip-invalid-size-inputs-valid-test: "),
        ("--score-reference", "--system B: --score-reference: "),
        ("--results-path x", "--system B: --results-path: "),
        ("--gold-lenght", "--system B: unrecognized arguments: --gold-lenght"),
        ("'", "--system B: No closing quotation"),
        (
            "--truncate-source --max-source-positions 3",
            "--system B has --truncate-source to --max-source-positions 3, A has False",
        ),
        ("--num-shards 2", "--system B: --num-shards: "),
        ("--beam 2 --lm-path x", "--system B: --lm-path: "),
        ("--replace-unk", "--system B: --replace-unk: "),
    ],
)
def test_a_row_that_cannot_be_compared_is_refused_by_name_before_the_decoding(made, undecoded, flags, said):
    assert said in refused(made.data, "--system", "A", made.ar, "--cpu", "--system", "B", made.ar, f"{flags} --cpu")


def test_references_that_do_not_fit_are_refused_before_the_decoding(made, undecoded, tmp_path):
    (tmp_path / "short").write_text("a\n")
    for files in (["short"], [made.text, "short"]):
        files = [str(tmp_path / name) if name == "short" else name for name in files]
        said = refused(made.data, "--system", "A", made.ar, "--cpu", "--reference", *files)
        assert said == f"nar-bench: --reference {tmp_path / 'short'} has 1 lines, the data have 9 sentences"
    (tmp_path / "file").write_text("")
    assert "--output" in refused(made.data, "--system", "A", made.ar, "--cpu", "--output", tmp_path / "file")


def test_sources_beyond_the_positions_are_refused_before_the_decoding(made, undecoded):
    few = "--max-source-positions 4"
    said = refused(made.data, "--system", "A", made.ar, few, "--flags", "--cpu")
    assert re.fullmatch(
        r"nar-bench: --system A: (\d) of 9 sources are longer than the 4 source positions, sentence \d has \d+ tokens: "
        r'take them out of the data, or give all systems --flags "--truncate-source --max-source-positions 4"',
        said,
    )
    System("A", made.ar, made.data, shlex.split(f"--cpu --truncate-source {few}")).check_lengths()


@pytest.mark.parametrize("engine", ["", pytest.param("ct2:", marks=ct2)])
def test_a_checkpoint_that_is_not_there_names_its_row(made, undecoded, engine):
    said = refused(made.data, "--system", "A", made.ar, "--cpu", "--system", "B", f"{engine}no.pt", "--cpu")
    assert said == "nar-bench: --system B: no checkpoint at no.pt: check the path that you gave"


@pytest.fixture
def broken(monkeypatch):
    """A function: what the system "B" does instead of decoding a batch of so many sentences or more."""
    real = System.start

    def break_at(size, error):
        def start(self):
            real(self)
            decode = self.task.inference_step

            def step(generator, models, sample, **kwargs):
                if self.name == "B" and len(sample["id"]) >= size:
                    raise error
                return decode(generator, models, sample, **kwargs)

            self.task.inference_step = step

        monkeypatch.setattr(System, "start", start)

    return break_at


def test_a_row_that_dies_while_decoding_keeps_the_reason_and_the_others_go_on(made, broken, capsys, tmp_path):
    broken(1, IndexError("list index\nout of range"))
    rows = [part for name in "BAC" for part in ("--system", name, made.ar, "--max-len-b 4")]
    said = refused(made.data, *rows, "--flags", "--cpu", *QUICK, "--output", tmp_path / "out", "--json", tmp_path / "x")
    reason = r"sentence \d and 8 more: IndexError: list index out of range"
    assert re.fullmatch(rf"nar-bench: 1 of 3 systems failed\. B: {reason}", said)
    _, _, first, *others = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert re.search(rf"^\| B +\| -.* {reason} \|$", first)
    assert len(others) == 2 and all(re.search(r"^\| [AC] +\| \d", other) for other in others)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["A.txt", "C.txt"]
    written = json.loads((tmp_path / "x").read_text())["systems"]
    assert [system["bleu"] is None for system in written] == [True, False, False]
    assert re.fullmatch(reason, written[0]["errors"][0]) and written[1]["errors"] == []


def test_a_batch_size_that_needs_too_much_memory_is_missing(made, broken, monkeypatch, capsys):
    monkeypatch.setattr(System.output, "__defaults__", (3,))  # its batches are small enough
    broken(9, torch.OutOfMemoryError("a GPU's"))
    rows = ("--system", "A", made.ar, "", "--system", "B", made.ar, "", "--flags", "--cpu --max-len-b 4")
    said = refused(made.data, *rows, "--batch-sizes", "1,9", "--sentences", "2,0", "--repeats", "1", "--details")
    reason = r"batch size 9, sentence \d and 8 more: OutOfMemoryError: a GPU's"
    assert re.fullmatch(rf"nar-bench: 1 of 2 systems failed\. B: {reason}", said)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| B ")]
    assert re.fullmatch(rf"(\| [^|]+){{4}}\| \d[^|]+\| - .* {reason} \|", lines[0])
    assert len(lines) == 2 and re.match(r"\| B +\| 1 ", lines[1])


def test_lack_of_memory_while_loading_is_a_row_and_other_errors_are_not(made, monkeypatch):
    real = System.start

    def start(self):
        if self.name == "B":
            raise error
        real(self)

    monkeypatch.setattr(System, "start", start)
    rows = (("A", made.ar, "--cpu"), ("B", made.ar, "--cpu"))
    error = MemoryError("too large")
    first, second = load_rows(made.data, rows, "")
    assert first.system is not None and not first.errors
    assert second.system is None and second.errors == ["MemoryError: too large"]
    with pytest.raises(ValueError, match="^--system B: MemoryError: too large$"):
        load_rows(made.data, rows[1:], "")
    error = RuntimeError("too strange")
    with pytest.raises(ValueError, match="^--system B: RuntimeError: too strange$"):
        load_rows(made.data, rows, "")


@pytest.mark.parametrize("engine", ["", pytest.param("ct2:", marks=ct2)])
def test_weights_that_are_nan_are_a_row_and_a_wrong_flag_is_not(made, tmp_path, capsys, engine):
    state = torch.load(made.ar, weights_only=False)
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    flags = "" if engine else "--decode-dtype int8"
    rows = ("--system", "A", f"{engine}{tmp_path / 'nan.pt'}", flags, "--system", "B", made.ar, "")
    said = refused(made.data, *rows, "--flags", "--cpu --max-len-b 4", *QUICK)
    reason = (
        "the model's weights are NaN" if engine else "--decode-dtype int8: decoder.layers.0.fc1.weight is NaN or inf"
    )
    assert said.startswith(f"nar-bench: 1 of 2 systems failed. A: {reason}")
    _, _, first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert re.search(rf"^\| A +\| -.* {reason}", first) and re.search(r"^\| B +\| \d", second)
    said = refused(made.data, *rows[:-1], "--beam 0", "--flags", "--cpu", *QUICK)
    assert said == "nar-bench: --system B: --beam 0: at least one hypothesis is needed"
    assert not capsys.readouterr().out


def test_another_engine_works_and_is_timed_in_a_process_of_its_own(made, monkeypatch):
    """Three processes die, in loading, decoding and timing; the others go on."""
    for name in ("Rival", "Dying", "DyingInTime", "DyingInLoading"):
        monkeypatch.setitem(speed.ENGINES, f"{name}:", getattr(rival_double, name))
    systems = [(name, f"{name}:{made.ar}", "") for name in ("DyingInLoading", "Dying", "DyingInTime", "Rival")]
    rows = load_rows(made.data, [*systems, ("ours", made.ar, "--max-len-b 4")], "--cpu")
    loading, dying, in_time, rival, ours = rows
    with speed.closing(rows):
        speed.decode_rows(rows)
        speed.time_rows(rows, 3, 6, repeats=2)
    assert loading.system is None and loading.errors == ["its process has ended, with exit status 4"]
    killed = "its process was killed by SIGKILL, perhaps for lack of memory"
    assert re.fullmatch(rf"sentence \d and 8 more: {killed}", dying.errors[0]) and dying.output is None
    assert in_time.errors == ["batch size 3, its process has ended, with exit status 3"] and not in_time.timings
    assert rival.output.text == in_time.output.text == ["w3"] * 9 and rival.output.passes == 2
    process = rival.system.worker.process
    assert rival.timings[3].seconds == [[process.pid] * 2] * 2 and process.pid != os.getpid() and process.exitcode == 0
    assert rival.system.weight_bytes() == 1000 * torch.get_num_threads() + 1  # the engine's threads, and PyTorch's
    assert not rival.errors and not ours.errors and ours.timings[3].sentences == 6 and len(ours.output.text) == 9


def test_peak_memory_is_that_of_a_process_of_its_own(made, capsys):
    if not counts_memory():
        assert "--memory: only Linux" in refused(made.data, "--system", "A", made.ar, "--cpu", "--memory")
        return
    bench.main([made.data, "--system", "A", made.ar, "--cpu --max-len-b 4", *QUICK, "--memory"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[3][9].strip() == "peak memory, MB" and 0 < float(rows[-1][9]) < 2000


def test_the_peak_is_the_most_since_it_was_restarted():
    if not counts_memory():
        pytest.skip("this system does not count it")
    restart_peak()
    before = memory("VmHWM")
    torch.ones(30_000_000)
    assert memory("VmHWM") - before > 100e6
    restart_peak()
    assert memory("VmHWM") - before < 60e6


# -- CTranslate2 -------------------------------------------------------------------------------------------------------


def test_a_row_of_ctranslate2_says_what_is_not_installed(made, undecoded, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    said = refused(made.data, "--system", "A", f"ct2:{made.ar}", "--cpu")
    assert said == "nar-bench: --system A: CTranslate2 is not installed: pip install 'nar-plugins[ct2]'"


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--iterations 3", "--iterations is no option of CTranslate2: leave it out"),
        ("--decode-dtype int8", "--decode-dtype is no option of CTranslate2: give --compute-type"),
        ("--generator blockwise", "--generator blockwise is no search of CTranslate2: leave it out"),
        ("--fp16", "--fp16: CTranslate2 has --compute-type instead"),
        ("--prefix-size 2", "--prefix-size cannot be honoured by CTranslate2: leave it out"),
        ("--sampling", "--sampling cannot be honoured by CTranslate2: leave it out"),
        ("--max-len-a inf", "--max-len-a inf: choose a finite number"),
        ("--unkpen 2", "--unkpen 2.0 cannot be honoured by CTranslate2: give inf, or leave it out"),
        ("--compute-type", "argument --compute-type: expected one argument"),
        ("--compute-typo int8", "unrecognized arguments: --compute-typo int8"),
        ("--batch-size 3", "--batch-size: nar-bench makes its own batches: give it --batch-sizes"),
    ],
)
def test_options_that_ctranslate2_lacks_are_refused_before_a_checkpoint_is_read(flags, said):
    found = refused("no data", "--system", "A", "ct2:no.pt", f"--cpu {flags}")
    assert found == f"nar-bench: --system A: {said}"


def test_an_ensemble_and_another_model_are_no_rows_of_ctranslate2(made, undecoded):
    found = refused(made.data, "--system", "A", f"ct2:{made.ar}:{made.ar}", "--cpu")
    assert found == "nar-bench: --system A: CTranslate2 decodes one checkpoint, and no ensemble"
    if importlib.util.find_spec("ctranslate2") is not None:
        found = refused(made.data, "--system", "A", f"ct2:{made.cmlm}", "--cpu")
        assert found.endswith("A: CTranslate2 cannot decode a CmlmModel: it decodes fairseq's transformer")
        found = refused(made.data, "--system", "A", f"ct2:{made.ar}", "--cpu --compute-type int7")
        assert found.startswith("nar-bench: --system A: --compute-type int7: CTranslate2 has ")


@ct2
def test_rows_of_ctranslate2_say_what_fairseq_says(made, tmp_path, capsys):
    """Greedily, with a limit that depends on the length; in int8 the weights are smaller."""
    systems = ["--system", "fairseq", made.ar, "--beam 1", "--system", "ct2", f"ct2:{made.ar}", "--beam 1"]
    systems += ["--system", "int8", f"ct2:{made.ar}", "--beam 5 --compute-type int8"]
    limits = "--cpu --max-len-a 0.5 --max-len-b 3 --min-len 2"
    files = ("--output", str(tmp_path / "out"), "--json", str(tmp_path / "table.json"))
    bench.main([made.data, *systems, "--flags", limits, *QUICK, *files])
    texts = {file.stem: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert texts["ct2"] == texts["fairseq"] and len(texts["int8"].splitlines()) == 9
    written = json.loads((tmp_path / "table.json").read_text())
    sizes = {system["name"]: system["weight_bytes"] for system in written["systems"]}
    assert sizes["int8"] < 0.5 * sizes["ct2"] and sizes["ct2"] > 0.9 * sizes["fairseq"]
    assert all(system["autoregressive"] and system["tokens_per_pass"] == 1 for system in written["systems"])
    assert written["machine"]["threads"] == torch.get_num_threads() and written["machine"]["versions"]["ctranslate2"]
    assert list(written["systems"][0]["batch_sizes"]) == ["1", "3"] and written["crossover"] == []


def test_unknown_words_of_the_data_are_not_translated(made, monkeypatch):
    """A system that says the targets as the dictionary has them gets the score that it gets against the text."""
    system = System("A", made.ar, made.data, ["--cpu"])
    targets = [system.string(system.dataset.tgt[i]) for i in range(len(system.dataset))]
    assert all("<unk>" in target for target in targets)
    found = score(targets, [system.reference()])
    texts = open(made.text, encoding="utf-8").read().split("\n")[:-1]
    assert found.bleu == pytest.approx(score(targets, [texts]).bleu) and 0 < found.bleu < 90


SHORT = ("--beam", "1", "--max-len-b", "6", "--num-workers", "0")


def test_a_prefix_is_served_as_fairseq_serves_it(made):
    given = ("--prefix-size", "2", *SHORT)
    printed = hypotheses(here("fairseq-generate", made.data, *TASK, "--path", made.ar, *given), "D")
    wanted = [printed[i][0][1] for i in range(9)]
    assert System("A", made.ar, made.data, ["--cpu", *given]).output().text == wanted
    assert System("A", made.ar, made.data, ["--cpu", *SHORT]).output().text != wanted
    assert "--prefix-size cannot be honoured" in refused(made.data, "--system", "A", made.cmlm, "--prefix-size 2 --cpu")


def test_text_is_what_fairseq_prints_through_bpe_and_tokenizer(made, monkeypatch):
    """--bpe and --tokenizer are heard as by fairseq-generate, where pieces would be scored otherwise."""
    for name, old, new in (("build_bpe", " ", "_"), ("build_tokenizer", "_w", " W")):
        made_of = SimpleNamespace(decode=lambda text, old=old, new=new: text.replace(old, new))
        monkeypatch.setattr(NarTranslationTask, name, lambda self, args, made_of=made_of: made_of)
    printed = here("fairseq-generate", made.data, *TASK, "--path", made.ar, *SHORT)
    found = System("A", made.ar, made.data, ["--cpu", *SHORT])
    assert found.output().text == [hypotheses(printed, "D")[i][0][1] for i in range(9)]
    targets = [hypotheses(printed, "T")[i][0][0] for i in range(9)]
    assert [text.replace(UNKNOWN_IN_REFERENCE, "<<unk>>") for text in found.reference()] == targets
    assert " W" in targets[0] and "<<unk>>" in targets[0]


def test_the_tokeniser_of_validation_is_kept_in_the_checkpoint(made, caplog):
    with caplog.at_level("INFO"):
        said = here(
            "fairseq-validate", made.data, *TASK, "--path", made.cmlm, "--valid-subset", "valid", "--max-tokens", "300"
        )
    assert "--eval-bleu: sacreBLEU's tokeniser char" in caplog.text + said


def test_bleu_is_of_the_tokeniser_given_or_of_the_language(made, capsys, tmp_path):
    scoring = ("--tokenize", "char", "--reference", made.text)
    bench.main([made.data, "--system", "A", made.ar, "--beam 1 --max-len-b 4", "--flags", "--cpu", *QUICK, *scoring])
    assert "|tok:char|" in capsys.readouterr().out
    for file in Path(made.data).iterdir():
        (tmp_path / file.name.replace("tgt", "zh")).write_bytes(file.read_bytes())
    bench.main([str(tmp_path), "--system", "A", made.ar, "--beam 1 --max-len-b 4", "--flags", "--cpu", *QUICK])
    assert "|tok:zh|" in capsys.readouterr().out
