"""Shards of fairseq-generate, decoded by a tiny model, and nar-merge, which makes one output of them."""

import re
from types import SimpleNamespace

import pytest
from conftest import ROOT, preprocess, random_sentences, write_pairs
from in_process import here, refusal

from nar_plugins.cli import merge as nar_merge
from nar_plugins.data.generated import best_hypotheses
from nar_plugins.data.shards import SENTENCE_LINE, Shard, merge, shard_of

TASK = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
SENTENCES = 23


@pytest.fixture(scope="module")
def generate(tmp_path_factory):
    """A function: flags -> the lines of fairseq-generate's output, of a tiny model on 23 sentences."""
    root = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 60), ("valid", 9), ("test", SENTENCES)):
        write_pairs(root, [(s, s) for s in random_sentences(count, count)], split)
    data = preprocess(root, root / "bin")
    model = ("--arch", "cmlm_tiny", "--criterion", "nar_loss", "--optimizer", "adam", "--share-all-embeddings")
    here("fairseq-train", data, *TASK, *model, "--max-tokens", "300", "--max-update", "1", "--save-dir", root / "run")
    common = (data, *TASK, "--path", root / "run" / "checkpoint_last.pt", "--batch-size", "5", "--iterations", "2")

    def run(*flags, of=here):
        output = of("fairseq-generate", *common, *flags)
        return output.split("\n")[:-1] if of is here else output

    return run


@pytest.fixture(scope="module")
def outputs(generate):
    """The outputs of all sentences, and of three shards of the test set and of one of the validation set."""
    test = [generate("--num-shards", "3", "--shard-id", str(i)) for i in range(3)]
    valid = generate("--num-shards", "2", "--shard-id", "1", "--gen-subset", "valid")
    return SimpleNamespace(whole=generate(), test=test, valid=valid)


def sentence_lines(lines) -> list:
    """The lines of sentences, by number."""
    numbered = [(int(SENTENCE_LINE.match(line)[2]), line) for line in lines if SENTENCE_LINE.match(line)]
    return [line for _, line in sorted(numbered, key=lambda pair: pair[0])]


def test_every_shard_decodes_its_part(outputs):
    """Without the workaround every shard decodes all sentences."""
    counts = [len(best_hypotheses(lines)) for lines in outputs.test]
    assert sum(counts) == SENTENCES and max(counts) < SENTENCES
    assert [shard_of(lines)[:4] for lines in outputs.test] == [(i, 3, "test src-tgt", SENTENCES) for i in range(3)]


def test_shards_in_any_order_are_the_output_of_all_sentences(outputs):
    first, second, third = outputs.test
    lines = merge({"c": third, "a": first, "b": second})
    assert lines == sentence_lines(outputs.whole) and len(lines) == 5 * SENTENCES
    assert [line.split("\t")[0] for line in lines if line[0] == "S"] == [f"S-{i}" for i in range(SENTENCES)]


@pytest.fixture
def merged(tmp_path, capsysbinary):
    """A function: outputs by name, and further arguments -> what nar-merge prints, or its one line and status 2."""

    def run(*more, **texts) -> str:
        for name, lines in texts.items():
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        try:
            nar_merge.main([*(str(tmp_path / name) for name in texts), *map(str, more)])
        except SystemExit as error:
            said = capsysbinary.readouterr().err.decode().replace(f"{tmp_path}/", "")
            assert error.code == 2 and said.count("\n") == 1 and said.startswith("nar-merge: "), said
            return said[len("nar-merge: ") : -1]
        return capsysbinary.readouterr().out.decode()

    return run


def test_the_command_writes_a_file_or_prints(outputs, merged, tmp_path):
    shards = dict(zip("abc", outputs.test))
    printed = merged(**shards)
    assert printed.split("\n")[:-1] == sentence_lines(outputs.whole)
    assert merged("--out", tmp_path / "all", **shards) == "" and (tmp_path / "all").read_text() == printed


def test_what_is_missing_or_twice_is_named(outputs, merged):
    a, b, c = outputs.test
    assert merged(a=a, c=c) == "of 3 shards these are missing: 1"
    assert merged(a=a, b=b, c=b) == "b and c are both shard 1 of 3"
    said = merged(a=a, b=outputs.valid)
    assert re.fullmatch("different data: a is of 3: test src-tgt, 23 .* tokens; b is of 2: valid .*", said)
    one = [line for line in b if not SENTENCE_LINE.match(line)]
    numbers = sorted({int(SENTENCE_LINE.match(line)[2]) for line in b if SENTENCE_LINE.match(line)})
    first = ", ".join(map(str, numbers[:5])) + f" and {len(numbers) - 5} more"
    assert merged(a=a, b=one, c=c) == f"{len(numbers)} of 23 sentences are missing: {first}"
    assert merged("--sentences", 24, a=a, b=b, c=c) == "--sentences 24: a says that there are 23"
    again = [line for line in a if line.startswith("S-")][0]
    assert merged(a=[*a, again], b=b, c=c) == f"a has sentence {again.split(chr(9))[0][2:]} twice"
    last = max(i for i, line in enumerate(b) if line.startswith("P-"))
    number = b[last].split("\t")[0][2:]
    assert merged(a=a, b=b[:last], c=c) == f"b is incomplete: sentence {number} has no line P-"
    assert merged("no file", a=a) == "no file no file"
    cut = [line for line in b if line[:2] not in ("H-", "P-")]
    last = max(i for i, line in enumerate(cut) if line.startswith("D-"))
    half = cut[last].rpartition("\t")[0]
    said = merged(a=a, b=[*cut[:last], half], c=c)
    assert said.startswith(f"b, line {last + 1}: '{half}' is cut off, as a run that is stopped leaves its last line")


def test_where_it_writes_is_looked_at_first(merged, tmp_path):
    assert merged("--out", tmp_path / "no" / "x", "no file") == "--out no/x: no folder 'no'"
    assert merged("--out", tmp_path, "no file").endswith(": this is a folder, and not a file")


def test_outputs_that_do_not_name_their_shard_need_the_number(outputs, merged):
    a, b, c = ([line for line in lines if not line.startswith("Shard ")] for lines in outputs.test)
    assert merged(a=a, b=b, c=c) == "a does not say which shard of which data it is: give --sentences N"
    assert merged("--sentences", 23, a=a, b=b, c=c).split("\n")[:-1] == sentence_lines(outputs.whole)
    assert merged("--sentences", 24, a=a, b=b, c=c) == "1 of 24 sentences are missing: 23"
    assert merged("--sentences", 22, a=a, b=b, c=c).endswith("has sentence 22, but there are 22 sentences, from 0")
    assert merged("--sentences", 23, a=a, b=[*b, *a], c=c).startswith("b and a have the same sentences: ")


def test_a_shard_s_line_is_read_as_it_was_written():
    shard = Shard(3, 8, "test1 zho_Hans-en", 1002, 5, 17)
    assert shard_of(["log", "S-1\tx", shard.line()]) == shard
    assert shard_of(["S-1\tShard 1 of 2", "Shard 1 of 2"]) is None


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--num-shards", "2", "--shard-id", "2"), "--shard-id 2: with --num-shards 2 it is 0 to 1"),
        (("--num-shards", "0"), "--num-shards 0: at least 1"),
        (("--num-shards", "7"), "--num-shards 7: there are 5 batches: give fewer shards or a smaller --batch-size"),
        (("--num-shards", "2", "--distributed-world-size", "2"), "--num-shards and --distributed-world-size: each"),
    ],
)
def test_shards_that_there_are_not_are_refused(generate, flags, said):
    assert generate(*flags, of=refusal).startswith(said)


@pytest.mark.parametrize("command, more", [("interactive", ", and give each process its part"), ("validate", "")])
def test_shards_of_another_command_are_refused(generate, command, more):
    """Each would take all sentences."""
    said = generate("--num-shards", "2", of=lambda _, *rest: refusal(f"fairseq-{command}", *rest))
    assert said.startswith(
        f"--num-shards 2: fairseq-{command} has no shards, only fairseq-generate: leave it out{more}"
    )
