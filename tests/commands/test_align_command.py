"""nar-align as a user types it: its files fit the data, a second run renews them, bad input is refused by name."""

import gzip
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import preprocess, random_sentences, run, write_pairs
from fairseq.data import data_utils
from in_process import own_refusal

from nar_plugins.cli import align
from nar_plugins.corpora.text import load_text
from nar_plugins.data.fertility import read_fertilities


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Reversed sentences whose w0 to w9 are said twice, and blank lines; train, valid and valid1."""
    folder = tmp_path_factory.mktemp("align")
    for split, count, seed in (("train", 400, 1), ("valid", 20, 2), ("valid1", 10, 3)):
        source = random_sentences(count, seed)
        target = [" ".join(f"{w} {w}" if len(w) == 2 else w for w in reversed(line.split())) for line in source]
        write_pairs(folder, [*zip(source, target), ("", "w1 w2"), ("w3", ""), ("", "")], split)
    return preprocess(folder, folder / "bin", validpref=f"{folder / 'valid'},{folder / 'valid1'}")


@pytest.fixture
def data(corpus, tmp_path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "bin"))


def check_sums(data: Path, split: str, source: str = "src", target: str = "tgt", named: str = "src-tgt") -> None:
    """Every line has a number for every source token, and they add up to the target's tokens."""
    values, offsets = read_fertilities(data / f"{split}.{source}-{target}.fert")
    left, right = (data_utils.load_indexed_dataset(f"{data}/{split}.{named}.{side}") for side in (source, target))
    assert np.diff(offsets).tolist() == left.sizes.tolist()
    assert np.add.reduceat(values, offsets[:-1]).tolist() == right.sizes.tolist()


refusal = partial(own_refusal, align.main)


def test_all_splits_a_second_run_and_the_other_direction(data):
    said = [line.split(": ", 1) for line in run("nar-align", data).splitlines() if ".fert" in line]
    assert [path for path, _ in said] == [f"{data}/{split}.src-tgt.fert" for split in ("train", "valid", "valid1")]
    assert said[0][1].startswith("403 lines; words of fertility 0: ")
    for split in ("train", "valid", "valid1"):
        check_sums(data, split)
    first = (data / "train.src-tgt.fert").read_bytes()
    assert first.splitlines()[-3:] == [b"3", b"0 1", b"1"]  # no source, no target, nothing

    (data / "train.src-tgt.fert").write_text("1 2\n")
    align.main([str(data), "-s", "tgt", "-t", "src"])
    check_sums(data, "train", "tgt", "src")
    align.main([str(data), "--splits", "train"])  # in the direction of the data, not of the files we have just written
    assert (data / "train.src-tgt.fert").read_bytes() == first


def test_alignments_from_elsewhere(data, tmp_path, capsys):
    source, target = (load_text(f"{data}/valid.src-tgt.{side}", 2) for side in ("src", "tgt"))
    rng, links = np.random.default_rng(1), []
    for n, m in zip(source.sizes, target.sizes):
        links.append([f"{rng.integers(n)}-{i}" for i in rng.permutation(m)] if n else [])
    (tmp_path / "links").write_text("\n".join(" ".join(line) for line in links) + "\n")
    align.main([str(data), "--splits", "valid", "--alignments", str(tmp_path / "links")])
    assert "valid.src-tgt.fert: 23 lines" in capsys.readouterr().out
    assert not (data / "train.src-tgt.fert").exists()
    check_sums(data, "valid")
    counts = [
        [sum(int(link.split("-")[0]) == j for link in line) for j in range(n)] for line, n in zip(links, source.sizes)
    ]
    lines = (data / "valid.src-tgt.fert").read_text().splitlines()
    assert lines[:20] == [" ".join(map(str, [*line, 1])) for line in counts[:20]]


def test_bad_input_is_refused_and_nothing_is_lost(data, tmp_path):
    align.main([str(data)])
    before = {path: path.read_bytes() for path in data.iterdir()}
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("\n" * 23)
    bad.write_text("\n" * 4 + "0-99\n" + "\n" * 8)
    assert "no data folder 'nowhere'" in refusal("nowhere")
    assert "give both" in refusal(data, "-s", "src")
    assert "both 'src'" in refusal(data, "-s", "src", "-t", "src")
    assert "no split like" in refusal(tmp_path)
    assert "train: no source file" in refusal(data, "-s", "en", "-t", "de")
    assert "dev: no source file" in refusal(data, "--splits", "dev")
    assert "0 iterations" in refusal(data, "--iterations", 0)
    assert "at most 0 links" in refusal(data, "--most-links", 0)
    assert "1 of --alignments for 3 splits (train, valid, valid1): name" in refusal(data, "--alignments", good)
    assert "no alignments" in refusal(data, "--splits", "valid", "--alignments", tmp_path / "links")
    assert "good has 23 lines, the split 403" in refusal(data, "--splits", "train", "--alignments", good)
    said = refusal(data, "--splits", "valid,valid1", "--alignments", good, bad)
    assert "bad, line 5: link 0-99 is outside of" in said
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    (data / "valid.src-tgt.tgt.idx").write_bytes(b"")
    (data / "valid1.src-tgt.fert").unlink()
    (data / "valid1.src-tgt.fert").mkdir()  # said before the other split is aligned
    assert "valid1.src-tgt.fert: this is a folder, and not a file" in refusal(data)
    (data / "valid1.src-tgt.fert").rmdir()
    assert "valid.src-tgt.tgt.idx or .bin is corrupt" in refusal(data, "--splits", "valid")
    (data / "dict.src.txt").unlink()
    assert "no dictionary" in refusal(data, "--splits", "valid1")


def test_sentences_without_an_end_are_refused(data):
    with pytest.raises(ValueError, match="valid.src-tgt.src: sentence 1 does not end with </s>"):
        load_text(f"{data}/valid.src-tgt.src", eos=3)


def test_real_text(shared_data, tmp_path):
    for language in ("en", "de"):
        text = gzip.open(shared_data("multi30k") / f"train.{language}.gz", "rt", encoding="utf-8").readlines()[:300]
        (tmp_path / f"train.{language}").write_text("".join(text), encoding="utf-8")
    run("fairseq-preprocess", "-s", "en", "-t", "de", "--trainpref", tmp_path / "train", "--destdir", tmp_path / "bin")
    align.main([str(tmp_path / "bin")])
    check_sums(tmp_path / "bin", "train", "en", "de", named="en-de")
