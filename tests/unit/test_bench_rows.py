"""nar-bench on real checkpoints: flags of one word, rows that cannot be compared, everything said before the
decoding.
"""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, hypotheses, random_sentences, write_pairs
from in_process import here

from nar_plugins.cli import bench
from nar_plugins.data.bleu import UNKNOWN_IN_REFERENCE
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import System
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


@pytest.fixture(autouse=True)
def log():
    yield
    logging.disable(logging.NOTSET)  # main silences the log of its process


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as error:
        bench.main([*map(str, arguments)])
    said = error.value.code
    assert isinstance(said, str) and "\n" not in said and said.startswith("nar-bench: "), said
    return said


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


def test_a_checkpoint_that_is_not_there_names_its_row(made, undecoded):
    said = refused(made.data, "--system", "A", made.ar, "--cpu", "--system", "B", "no.pt", "--cpu")
    assert said.startswith("nar-bench: --system B: ") and "no.pt" in said


def test_a_row_that_dies_while_decoding_is_named(made, monkeypatch):
    real = System.__init__

    def broken(self, name, *args):
        real(self, name, *args)
        if name == "B":
            self.task.inference_step = lambda *args, **kwargs: [][0]

    monkeypatch.setattr(System, "__init__", broken)
    rows = ("--system", "A", made.ar, "", "--system", "B", made.ar, "", "--flags", "--cpu")
    said = refused(made.data, *rows)
    assert re.fullmatch(r"nar-bench: --system B, sentence \d and 8 more: IndexError: list index out of range", said)


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


def test_bleu_is_of_the_tokeniser_given(made, capsys):
    scoring = ("--tokenize", "char", "--reference", made.text)
    bench.main([made.data, "--system", "A", made.ar, "--beam 1 --max-len-b 4", "--flags", "--cpu", *QUICK, *scoring])
    assert "|tok:char|" in capsys.readouterr().out
