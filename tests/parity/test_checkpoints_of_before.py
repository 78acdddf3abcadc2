"""Checkpoints made by an earlier state of this package load, and give the tokens and scores that they gave then.

``tests/fixtures/trained_before`` has one tiny checkpoint a method, twelve sentences, and in outputs.json what commit
098fd66 made of them (of the n-best lists a later one, since when each text stands there once). ``python
tests/parity/THIS_FILE`` writes outputs.json anew: only for a change that is meant to alter the outputs. make.sh there
trains the checkpoints.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT, hypotheses, preprocess
from in_process import here

FOLDER = FIXTURES / "trained_before"
DECODINGS = {
    "cmlm": ["", "--iterations 4 --length-beam 3 --nbest 2", "--schedule cosine"],
    "nat": ["", "--length-beam 3 --nbest 2"],
    "blockwise": ["--beam 1", "--beam 1 --verify-block 3", "--beam 1 --drafter jacobi", "--beam 3"],
    "bang": [
        f"--bang-policy {policy} --max-len-b 20"
        for policy in ("adaptive", "nar", "block --bang-block 3", "prefix", "cascade", "verify", "ar --beam 3")
    ],
}
CASES = [(name, flags) for name, several in DECODINGS.items() for flags in several]


def binarised(folder: Path) -> Path:
    """The twelve sentences with the checkpoints' dictionary."""
    for side in ("src", "tgt"):
        shutil.copy(FOLDER / f"test.{side}", folder)
    return preprocess(folder, folder / "bin", srcdict=FOLDER / "dict.txt")


def decoded(data: Path, name: str, flags: str) -> dict:
    """Number of the sentence -> its hypotheses, best first, each a score and its tokens as text."""
    common = ("--user-dir", ROOT / "nar_plugins", "--task", "nar_translation", "--cpu", "--path", FOLDER / f"{name}.pt")
    found = hypotheses(here("fairseq-generate", data, *common, *flags.split()))
    return {str(number): [[float(score), text] for score, text in found[number]] for number in sorted(found)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return binarised(tmp_path_factory.mktemp("before"))


@pytest.mark.parametrize("name, flags", CASES)
def test_tokens_and_scores_are_those_of_before(data, name, flags):
    expected = json.loads((FOLDER / "outputs.json").read_text(encoding="utf-8"))[f"{name} {flags}".strip()]
    found = decoded(data, name, flags)
    assert {n: [text for _, text in hypos] for n, hypos in found.items()} == {
        n: [text for _, text in hypos] for n, hypos in expected.items()
    }
    for number, hypos in expected.items():
        assert [score for score, _ in found[number]] == pytest.approx([score for score, _ in hypos], abs=2e-4)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        bin_ = binarised(Path(made))
        outputs = {f"{name} {flags}".strip(): decoded(bin_, name, flags) for name, flags in CASES}
    (FOLDER / "outputs.json").write_text(json.dumps(outputs, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
