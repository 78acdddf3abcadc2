"""The quickstart corpus: repeatable, disjoint, several right targets a source, and German as worked out by hand."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from conftest import script

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "corpus.py"
SIZES = {"train": 400, "valid": 100, "test": 100}
# All files of the run below, in the order of their names.  A change of the grammar changes it, and nothing else may.
PINNED = "e56af75714490e65b4858fbe1300c9dea2a5bebab9d54cb7aa37eeb5da65e276"


corpus = script("examples/quickstart/corpus.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    corpus.write_corpus(folder, count=SIZES["train"], seed=1, held_out=SIZES["test"])
    return folder


def texts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def lines(folder, name):
    return (folder / name).read_bytes().decode("utf-8").split("\n")[:-1]


def noun(kind, en, **changes):
    (found,) = [np for np in corpus.nouns(kind) if np.en == en]
    return found._replace(**changes)


def verb(table, base):
    (found,) = [verb for verb in corpus.verbs(table) if verb.base == base]
    return found


def row(table, en):
    (found,) = [part for part in corpus.pairs(table) if part.en == en]
    return found


# ------------------------------------------------------------------------------------------------- files
def test_same_seed_same_bytes(out, tmp_path):
    corpus.write_corpus(tmp_path, count=SIZES["train"], seed=1, held_out=SIZES["test"])
    assert texts(tmp_path) == texts(out)
    digest = hashlib.sha256(b"".join(texts(out).values())).hexdigest()
    assert digest == PINNED


def test_other_seed_other_corpus(out, tmp_path):
    corpus.write_corpus(tmp_path, count=SIZES["train"], seed=2, held_out=SIZES["test"])
    assert texts(tmp_path)["train.de"] != texts(out)["train.de"]


def test_held_out_sets_do_not_depend_on_the_training_size(out, tmp_path):
    corpus.write_corpus(tmp_path, count=10, seed=1, held_out=SIZES["test"])
    for name in ("valid.en", "valid.de", "test.en", "test.de", "test.de.1"):
        assert lines(tmp_path, name) == lines(out, name)


def test_line_counts_and_plain_lines(out):
    extra = [f"test.de.{i}" for i in range(1, corpus.EXTRA + 1)]
    assert sorted(texts(out)) == sorted([f"{split}.{side}" for split in SIZES for side in ("en", "de")] + extra)
    for name, data in texts(out).items():
        assert data.endswith(b"\n") and b"\r" not in data and b"  " not in data
        assert len(lines(out, name)) == SIZES[name.split(".")[0]]
        assert all(6 <= len(line.split()) <= 14 and line[-1] in ".?" for line in lines(out, name))


def test_no_source_twice(out):
    sources = [line for split in SIZES for line in lines(out, f"{split}.en")]
    assert len(set(sources)) == len(sources) == sum(SIZES.values())


def test_references_are_targets_of_their_source(out):
    held_out = corpus.sources(random.Random(1), 1)  # the first draw is the first line of the test set
    source, variants = next(held_out)
    references = {lines(out, name)[0] for name in texts(out) if name.startswith("test.de")}
    assert lines(out, "test.en")[0] == source
    assert references <= set(variants) and len(references) == min(len(variants), corpus.EXTRA + 1)


def test_second_run_does_nothing(out):
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "already holds" in corpus.write_corpus(out, count=SIZES["train"], seed=1, held_out=SIZES["test"])
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_unfinished_or_different_corpus_is_written_anew(tmp_path):
    corpus.write_corpus(tmp_path, count=5, seed=1, held_out=5)
    (tmp_path / "train.de").unlink()
    assert "pairs" in corpus.write_corpus(tmp_path, count=5, seed=1, held_out=5)
    assert "pairs" in corpus.write_corpus(tmp_path, count=5, seed=2, held_out=5)
    (tmp_path / "corpus.json").write_text("{", encoding="utf-8")
    assert "pairs" in corpus.write_corpus(tmp_path, count=5, seed=2, held_out=5)
    assert json.loads((tmp_path / "corpus.json").read_text(encoding="utf-8"))["seed"] == 2


def test_errors_are_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as error:
        corpus.main([str(tmp_path / "file"), "--pairs", "1"])
    assert str(error.value).startswith("corpus.py: ") and "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        corpus.main([str(tmp_path), "--pairs", "0"])


# ---------------------------------------------------------------------------------------- multimodality
def test_several_targets_a_source():
    sizes, varying = [], 0
    for _, variants in corpus.sources(random.Random(3), 2000):
        assert len(set(variants)) == len(variants)
        sizes.append(len(variants))
        varying += len({len(target.split()) for target in variants}) > 1
    assert max(sizes) == corpus.MOST_TARGETS and sum(size >= 2 for size in sizes) >= 0.7 * len(sizes)
    assert 2 <= sum(sizes) / len(sizes) <= 3
    assert varying >= 0.2 * len(sizes)  # the length in words depends on the variant


def test_a_source_has_one_set_of_targets():
    """Two scenes that English cannot tell apart would make the list of targets incomplete."""
    rng, seen = random.Random(5), {}
    for _ in range(3000):
        scene = corpus.pick(rng, corpus.FAMILIES)(rng)
        variants = set(corpus.targets(scene))
        assert seen.setdefault(corpus.english(scene), variants) == variants


# -------------------------------------------------------------------------------------- worked by hand
@pytest.mark.parametrize(
    "part, en, de",
    [
        (corpus.date(3, 5, 2021, False), "on 3 May 2021", {"am 3. Mai 2021", "am dritten Mai 2021", "am 03.05.2021"}),
        (corpus.date(21, 12, None, True), "on December 21st", {"am 21. Dezember", "am einundzwanzigsten Dezember"}),
        (
            corpus.date(12, 3, 2020, True),
            "on March 12th, 2020",
            {"am 12. März 2020", "am zwölften März 2020", "am 12.03.2020"},
        ),
        (corpus.clock(15, 30, False), "at half past three", {"um halb vier", "um 15.30 Uhr"}),
        (corpus.clock(12, 30, True), "at 12:30 pm", {"um halb eins", "um 12.30 Uhr"}),
        (corpus.clock(13, 0, False), "at one o'clock", {"um ein Uhr", "um 13 Uhr"}),
        (corpus.clock(9, 45, True), "at 9:45 am", {"um Viertel vor zehn", "um 9.45 Uhr"}),
        (corpus.clock(13, 15, False), "at quarter past one", {"um Viertel nach eins", "um 13.15 Uhr"}),
    ],
)
def test_dates_and_times(part, en, de):
    assert (part.en, set(part.de)) == (en, de)


@pytest.mark.parametrize(
    "det, adjective, kind, en, declined",
    [
        (
            "a",
            "red=rot",
            "vehicle",
            "car",
            [
                {"ein rotes Auto", "ein roter Wagen"},
                {"ein rotes Auto", "einen roten Wagen"},
                {"einem roten Auto", "einem roten Wagen"},
            ],
        ),
        ("the", "old=alt", "clothes", "jacket", [{"die alte Jacke"}, {"die alte Jacke"}, {"der alten Jacke"}]),
        (
            "this",
            "young=jung",
            "people",
            "boy",
            [{"dieser junge Junge"}, {"diesen jungen Jungen"}, {"diesem jungen Jungen"}],
        ),
        (
            "our",
            "rich=reich",
            "kin",
            "children",
            [{"unsere reichen Kinder"}, {"unsere reichen Kinder"}, {"unseren reichen Kindern"}],
        ),
        ("", "expensive=teur", "print", "book", [{"zwei teure Bücher", "2 teure Bücher"}] * 2),
        ("", "", "name", "Mr Schmidt", [{"Herr Schmidt"}, {"Herrn Schmidt"}, {"Herrn Schmidt"}]),
        ("", "", "pronoun", "you", [{"du", "Sie"}, {"dich", "Sie"}, {"dir", "Ihnen"}]),
    ],
)
def test_declension(det, adjective, kind, en, declined):
    count = corpus.Part("two", ("zwei", "2")) if en == "book" else corpus.Part()
    np = noun(kind, en, det=det, adjective=corpus.pairs(adjective)[0] if adjective else corpus.Part(), count=count)
    for case, expected in enumerate(declined):
        assert set(corpus.np_part(np, case).de) == expected


def test_past_statement():
    scene = corpus.Scene(
        subject=noun("pronoun", "she"),
        verb=verb(corpus.ACTIONS, "buy"),
        tense="past",
        mood="statement",
        parts={
            "indefinite": corpus.np_part(noun("vehicle", "car", det="a"), corpus.ACC),
            "place": row(corpus.PLACES, "at the market"),
            "time": row(corpus.TIMES["past"], "yesterday"),
        },
    )
    assert corpus.english(scene) == "She bought a car at the market yesterday."
    assert corpus.english(scene._replace(fronted=True)) == "Yesterday, she bought a car at the market."
    assert set(corpus.targets(scene)) == {
        "Sie kaufte gestern auf dem Markt ein Auto.",
        "Sie kaufte gestern auf dem Markt einen Wagen.",
        "Sie hat gestern auf dem Markt ein Auto gekauft.",
        "Sie hat gestern auf dem Markt einen Wagen gekauft.",
        "Gestern kaufte sie auf dem Markt ein Auto.",
        "Gestern kaufte sie auf dem Markt einen Wagen.",
        "Gestern hat sie auf dem Markt ein Auto gekauft.",
        "Gestern hat sie auf dem Markt einen Wagen gekauft.",
    }


def test_separable_verbs_and_werden():
    scene = corpus.Scene(
        subject=noun("event", "concert", det="the"),
        verb=verb(corpus.EVENTS, "begin"),
        tense="future",
        mood="question",
        parts={"time": corpus.clock(15, 30, False)},
    )
    assert corpus.english(scene) == "Will the concert begin at half past three?"
    assert set(corpus.targets(scene)) == {
        "Beginnt das Konzert um halb vier?",
        "Beginnt das Konzert um 15.30 Uhr?",
        "Fängt das Konzert um halb vier an?",
        "Fängt das Konzert um 15.30 Uhr an?",
        "Wird das Konzert um halb vier beginnen?",
        "Wird das Konzert um 15.30 Uhr beginnen?",
        "Wird das Konzert um halb vier anfangen?",
        "Wird das Konzert um 15.30 Uhr anfangen?",
    }


def test_you_agrees_with_its_verb():
    scene = corpus.Scene(
        subject=noun("pronoun", "you"),
        verb=verb(corpus.MOTIONS, "travel"),
        tense="past",
        mood="why",
        parts={"goal": row(corpus.FAR, "to Switzerland"), "why": corpus.Part("why", ("warum",))},
    )
    assert corpus.english(scene) == "Why did you travel to Switzerland?"
    assert set(corpus.targets(scene)) == {
        "Warum bist du in die Schweiz gereist?",
        "Warum bist du in die Schweiz gefahren?",
        "Warum sind Sie in die Schweiz gereist?",
        "Warum sind Sie in die Schweiz gefahren?",
        "Warum reisten Sie in die Schweiz?",
        "Warum fuhren Sie in die Schweiz?",
    }


def test_dative_verb_and_two_teachers():
    scene = corpus.Scene(
        subject=noun("people", "teacher", det="the"),
        verb=verb(corpus.ACTIONS, "help"),
        tense="want to",
        mood="statement",
        parts={"dative": corpus.np_part(noun("kin", "parents", det="my"), corpus.DAT)},
    )
    assert corpus.english(scene) == "The teacher wants to help my parents."
    assert set(corpus.targets(scene)) == {
        "Der Lehrer will meinen Eltern helfen.",
        "Die Lehrerin will meinen Eltern helfen.",
    }


def test_forms_of_du_and_ich():
    forms = {
        verb.infinitive: verb
        for table in (corpus.ACTIONS, corpus.MOTIONS)
        for v in corpus.verbs(table)
        for verb in v.german
    }
    du = {
        "kaufen": "kaufst",
        "lesen": "liest",
        "essen": "isst",
        "laden": "lädst",
        "reisen": "reist",
        "finden": "findest",
        "schließen": "schließt",
        "putzen": "putzt",
        "waschen": "wäschst",
        "öffnen": "öffnest",
        "füttern": "fütterst",
    }
    assert {name: corpus.present(forms[name], "du") for name in du} == du
    assert [corpus.present(forms[name], "ich") for name in ("füttern", "öffnen", "laden")] == [
        "füttere",
        "öffne",
        "lade",
    ]
    assert [corpus.preterite(forms[name], "wir") for name in ("kaufen", "lesen", "essen")] == [
        "kauften",
        "lasen",
        "aßen",
    ]
