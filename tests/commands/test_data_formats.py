"""Data as users have them: fairseq's older formats, raw text, folders by the epoch, links made elsewhere, broken
dictionaries.
"""

import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, hypotheses, preprocess, random_sentences, write_pairs
from fairseq.data import data_utils
from in_process import here, own_refusal, refusal

from nar_plugins.cli import align, distill
from nar_plugins.data.fertility import read_fertilities

TASK = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu")
TRAIN = (
    "--optimizer",
    "adam",
    "--lr",
    "1e-3",
    "--max-tokens",
    "300",
    "--max-update",
    "2",
    "--no-progress-bar",
    "--num-workers",
    "0",
)
NAT = ("--share-all-embeddings", "--arch", "nat_tiny", "--criterion", "nar_loss")


def binarised(folder: Path, name: str, **options) -> Path:
    for split, count, seed in (("train", 60, 1), ("valid", 12, 2)):
        if not (folder / f"{split}.src").exists():
            write_pairs(folder, [(s, " ".join(reversed(s.split()))) for s in random_sentences(count, seed)], split)
    return preprocess(folder, folder / name, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    """One corpus in three formats."""
    folder = tmp_path_factory.mktemp("formats")
    return {impl: binarised(folder, impl, dataset_impl=impl) for impl in ("mmap", "lazy", "raw")}


def aligned(capsys, folder: Path, *arguments) -> str:
    align.main([str(folder), *map(str, arguments)])
    return capsys.readouterr().out


unaligned = partial(own_refusal, align.main)


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["lazy", "cached", None])
def test_older_data_hold_what_the_newer_do(data, flag):
    new = data_utils.load_indexed_dataset(f"{data['mmap']}/train.src-tgt.tgt")
    old = data_utils.load_indexed_dataset(f"{data['lazy']}/train.src-tgt.tgt", dataset_impl=flag)
    for dataset in (old, pickle.loads(pickle.dumps(old))):
        assert len(dataset) == len(new) == 60 and dataset.sizes.tolist() == new.sizes.tolist()
        assert all(dataset[i].tolist() == new[i].tolist() and dataset[i].dtype == new[i].dtype for i in range(60))
    assert len(pickle.dumps(old)) < 1000  # its path, not its tokens


def trained(folder: Path, save: Path, *flags) -> dict:
    """The translations of two updates."""
    here("fairseq-train", folder, *TASK, *TRAIN, *NAT, *flags, "--save-dir", save)
    return hypotheses(
        here(
            "fairseq-generate",
            folder,
            *TASK,
            *flags,
            "--gen-subset",
            "valid",
            "--max-tokens",
            "300",
            "--path",
            save / "checkpoint_last.pt",
        )
    )


@pytest.fixture(scope="module")
def newer(data, tmp_path_factory) -> tuple:
    """The fertilities and the translations of the corpus in today's format."""
    folder = Path(shutil.copytree(data["mmap"], tmp_path_factory.mktemp("newer") / "bin"))
    align.main([str(folder)])
    return (folder / "train.src-tgt.fert").read_bytes(), trained(folder, folder.parent)


@pytest.mark.parametrize(
    "impl, flags", [("lazy", ()), ("lazy", ("--dataset-impl", "cached")), ("raw", ("--dataset-impl", "raw"))]
)
def test_every_command_reads_every_format(data, newer, tmp_path, capsys, impl, flags):
    folder = Path(shutil.copytree(data[impl], tmp_path / "bin"))
    said = aligned(capsys, folder)
    assert "train.src-tgt.fert: 60 lines" in said and "valid.src-tgt.fert: 12 lines" in said
    assert (folder / "train.src-tgt.fert").read_bytes() == newer[0]
    (folder / "aaa.tgt-src.fert").write_text(
        "1\n"
    )  # by which fairseq would take raw text for data of the other direction
    assert len(newer[1]) == 12 and trained(folder, tmp_path, *flags) == newer[1]


def test_a_teacher_distils_older_data(data, tmp_path):
    ar = ("--share-all-embeddings", "--arch", "transformer_tiny", "--criterion", "cross_entropy")
    here("fairseq-train", data["mmap"], *TASK, *TRAIN, *ar, "--save-dir", tmp_path)
    made = []
    for impl in ("mmap", "lazy"):
        out = tmp_path / impl
        distill.main(
            [
                str(data[impl]),
                "--teacher",
                str(tmp_path / "checkpoint_last.pt"),
                "--out",
                str(out),
                "--beam",
                "1",
                "--max-len-b",
                "5",
                "--cpu",
                "--no-progress-bar",
            ]
        )
        made.append(data_utils.load_indexed_dataset(f"{out}/train.src-tgt.tgt"))
        assert len(data_utils.load_indexed_dataset(f"{out}/valid.src-tgt.src")) == 12
    assert [line.tolist() for line in made[0]] == [line.tolist() for line in made[1]]


@pytest.mark.parametrize("file, size", [("idx", 100), ("idx", -8), ("idx", 4), ("bin", -4), ("bin", 0)])
def test_older_data_cut_short_are_refused(data, tmp_path, file, size):
    folder = Path(shutil.copytree(data["lazy"], tmp_path / "bin"))
    path = folder / f"valid.src-tgt.tgt.{file}"
    path.write_bytes(path.read_bytes()[:size])
    for said in (
        unaligned(folder),
        refusal("fairseq-train", folder, *TASK, *TRAIN, *NAT, "--save-dir", tmp_path / "save"),
    ):
        assert "valid.src-tgt.tgt" in said and ("corrupt" in said or "is empty" in said)


def test_a_flag_or_a_file_of_another_format_is_named(data, tmp_path):
    def train(folder, *flags):
        return refusal("fairseq-train", folder, *TASK, *TRAIN, *NAT, *flags, "--save-dir", tmp_path / "save")

    said = train(data["mmap"], "--dataset-impl", "lazy")
    assert "valid.src-tgt.src.idx is no data of --dataset-impl lazy (it is mmap): leave the flag out" in said
    assert "(it is cached or lazy): leave the flag out" in train(data["lazy"], "--dataset-impl", "mmap")
    said = train(data["raw"])
    assert "no source file" in said and "is raw text: give --dataset-impl raw" in said
    assert "run nar-align" in train(data["raw"], "--dataset-impl", "raw")  # which reads it
    both = Path(shutil.copytree(data["mmap"], tmp_path / "bin"))
    shutil.copy(data["raw"] / "valid.src-tgt.src", both)
    for said in (train(both), unaligned(both)):
        assert "valid.src-tgt.src is raw text beside" in said and "take one of them away" in said
    (both / "valid.src-tgt.src.idx").unlink()
    assert "no target file" in unaligned(both)  # one side of each
    uneven = Path(shutil.copytree(data["raw"], tmp_path / "raw"))
    (uneven / "train.src-tgt.tgt").write_text("w1 w2\n")
    assert "train: 60 src but 1 tgt sentences" in unaligned(uneven)


def test_folders_that_take_turns_are_aligned_together(data, tmp_path, capsys):
    first, second = (Path(shutil.copytree(data["mmap"], tmp_path / name)) for name in ("a", "b"))
    for file in [*second.glob("valid.*"), *second.glob("dict.*")]:
        file.unlink()  # as fairseq: these are looked for in the first only
    said = aligned(capsys, f"{first}:{second}")
    assert "aligner: 120 of 120 pairs of train" in said
    files = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.fert"))]
    assert list(map(str, files)) == ["a/train.src-tgt.fert", "a/valid.src-tgt.fert", "b/train.src-tgt.fert"]
    assert (first / "train.src-tgt.fert").read_bytes() == (second / "train.src-tgt.fert").read_bytes()
    here("fairseq-train", f"{first}:{second}", *TASK, *TRAIN, *NAT, "--max-epoch", "2", "--save-dir", tmp_path / "save")
    assert f"no data folder '{tmp_path / 'c'}'" in unaligned(f"{first}:{tmp_path / 'c'}")


# -- links made elsewhere ----------------------------------------------------------------------------------------------


CASES = {  # sub-words of four, three and two words
    "src": ["a@@ b c d@@ e@@ f g", "h i j@@ k", "l m"],
    "tgt": ["A@@ B@@ B C D@@ E F@@ G", "H I@@ J K", "L M"],
}
MARKS = {
    "bpe": lambda line: line,
    "sentencepiece": lambda line: " ".join(p if q.endswith("@@") else f"\u2581{p}" for q, p in previous(line)).replace(
        "@@", ""
    ),
    "wordpiece": lambda line: " ".join(f"##{p}" if q.endswith("@@") else p for q, p in previous(line)).replace(
        "@@", ""
    ),
}
WHOLE = ["0-0 1-1 2-2 3-3 4-4 5-5 6-7", "0-0 1-1 2-2 3-3", "0-0 1-1"]


def previous(line: str) -> list:
    pieces = line.split()
    return list(zip(["", *pieces], pieces))


def pairs_with(tmp_path: Path, mark=lambda line: line, times: int = 1) -> Path:
    folder = tmp_path / "text"
    write_pairs(folder, [(mark(s), mark(t)) for s, t in zip(CASES["src"], CASES["tgt"])] * times, "train")
    return preprocess(folder, tmp_path / "bin")


def with_links(data: Path, lines, ending: str = "\n") -> tuple:
    file = data.parent / "links"
    file.write_bytes("".join(f"{line}{ending}" for line in lines).encode())
    return data, "--alignments", file


@pytest.mark.parametrize("name", MARKS)
def test_links_of_words_on_sub_words_are_refused(tmp_path, name):
    data = pairs_with(tmp_path, MARKS[name])
    said = unaligned(*with_links(data, ["0-0 1-1 2-2 3-3", "0-0 1-1 2-2", "0-0 1-1"]))
    assert (
        "links: in 2 of 2 lines the links are of whole words, and the data are sub-words: align the very text" in said
    )
    assert not list(data.glob("*.fert"))


def test_links_that_end_before_the_sentences_are_refused(tmp_path):
    data = pairs_with(tmp_path, lambda line: line.replace("@@", ""))  # whose pieces have no marks
    said = unaligned(*with_links(data, ["0-0 1-1 2-2 3-3", "0-0 1-1 2-2", "0-0 1-1"]))
    assert "in 2 of 3 lines the links end before both sentences do" in said


@pytest.mark.parametrize("lines", [[""] * 30, [*WHOLE[2:], *[""] * 29]])
def test_links_of_hardly_any_word_are_refused(tmp_path, lines):
    data = pairs_with(tmp_path, times=10)
    said = unaligned(*with_links(data, lines))
    assert (
        "no link for " in said
        and "% of the target tokens (an aligner that ran out of memory leaves blank lines)" in said
    )
    assert not list(data.glob("*.fert"))


@pytest.mark.parametrize(
    "lines, ending, share, warned",
    [
        (WHOLE, "\n", "7.1%", False),
        (WHOLE, "\r\n", "7.1%", False),
        (["0-0 6-7", "3-3 0-0", "0-0 1-1"], "\n", "57.1%", True),  # an intersection, sparse but to the ends
        (["0-0 6-7", "", "0-0 1-1"], "\n", "71.4%", True),
        (["0-0 1-1 2-2 3-3 4-4 5-5", "0-0 3-3 1-1", "0-0 1-1"], "\n", "21.4%", True),  # one of three ends early
    ],
)
def test_other_links_are_taken_and_their_share_is_said(tmp_path, capsys, lines, ending, share, warned):
    data = pairs_with(tmp_path)
    align.main(list(map(str, with_links(data, lines, ending))))
    said = capsys.readouterr()
    assert f"target tokens without a link: {share}" in said.out
    assert ("no link for" in said.err) == warned
    values, offsets = read_fertilities(data / "train.src-tgt.fert")
    assert np.add.reduceat(values, offsets[:-1]).tolist() == [9, 5, 3]


# -- dictionaries
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, says",
    [
        ("w1\t7", "line 3: 'w1\t7' is not a symbol, a blank and a count"),
        ("w77", "line 3: 'w77' is not a symbol"),
        ("", "line 3: '' is not a symbol"),
        ("w77 many", "line 3: 'w77 many' is not a symbol"),
        ("<unk> 3", "line 3: '<unk>' is there already"),
    ],
)
def test_a_broken_dictionary_is_named_with_its_line(data, tmp_path, line, says):
    folder = Path(shutil.copytree(data["mmap"], tmp_path / "bin"))
    path = folder / "dict.tgt.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    for said in (
        unaligned(folder),
        refusal("fairseq-train", folder, *TASK, *TRAIN, *NAT, "--save-dir", tmp_path / "save"),
    ):
        assert f"{path}, {says}" in said


def test_a_symbol_that_stands_twice_and_one_of_latin_1(data, tmp_path):
    folder = Path(shutil.copytree(data["mmap"], tmp_path / "bin"))
    path = folder / "dict.src.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[4]]) + "\n")
    assert f"{path}, line {len(lines) + 1}: '{lines[4].split()[0]}' is there already" in unaligned(folder)
    path.write_text("\n".join([*lines, f"{lines[4]} #fairseq:overwrite"]) + "\n")
    align.main([str(folder)])  # as fairseq allows
    path.write_bytes("gr\u00fcn 3\n".encode("latin-1"))
    assert f"{path} is not UTF-8" in unaligned(folder)


def test_two_dictionaries_where_a_bang_has_one(tmp_path):
    folder = tmp_path / "text"
    write_pairs(folder, [(s, s.replace("w", "v")) for s in random_sentences(9, 4)], "train")
    here("fairseq-preprocess", "-s", "src", "-t", "tgt", "--trainpref", folder / "train", "--destdir", tmp_path / "bin")
    bang = (*TASK, *TRAIN, "--arch", "bang_tiny", "--criterion", "bang_loss", "--save-dir", tmp_path / "save")
    said = refusal("fairseq-train", tmp_path / "bin", *bang)
    assert "--arch bang_tiny has one dictionary for both sides: give fairseq-preprocess --joined-dictionary" in said
    joined = preprocess(folder, tmp_path / "joined")
    said = refusal("fairseq-train", joined, *bang, "--decoder-embed-dim", "32")
    assert "--encoder-embed-dim 64 and --decoder-embed-dim 32 must be equal" in said
