"""docs/hub.md: its blocks of code, in their order, in a folder with what they name."""

import contextlib
import io
import os
import re
import subprocess

import forked
import sentencepiece
from conftest import ROOT
from fairseq.data import Dictionary
from saved import save

PAGE = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
TEXTS = ["the first sentence", "the second one", "one sentence"]


def prepare(folder) -> None:
    """A SentencePiece model, dictionaries of its pieces, a cmlm of random weights, and a test set."""
    model, symbols = io.BytesIO(), Dictionary()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 9), model_writer=model, vocab_size=23, model_type="bpe", minloglevel=2
    )
    (folder / "spm.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for i in range(3, 23):
        symbols.add_symbol(processor.id_to_piece(i))
    for name in ("bin", "cmlm"):
        (folder / name).mkdir()
    for language in ("en", "de"):
        symbols.save(str(folder / "bin" / f"dict.{language}.txt"))
        (folder / "bin" / f"test.en-de.{language}.idx").touch()  # its name has the languages
    (folder / "test.en").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    save(folder / "cmlm" / "checkpoint_best.pt", "cmlm_tiny", "--max-target-positions", "40")


def test_the_page_runs_as_it_is_written(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = f"{forked.commands()}{os.pathsep}{os.environ['PATH']}"
    names, printed = {}, []
    for kind, code in BLOCKS:
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)  # the page's own code
            printed.append(out.getvalue().splitlines())
        else:
            assert kind == "bash"
            subprocess.run(code, shell=True, check=True, env={**os.environ, "PATH": path})
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "bash", "python"]
    assert len(printed[1]) == len(TEXTS) and printed[0][0].endswith(" 4")  # the passes
    assert (tmp_path / "model-en-de" / "README.md").is_file() and len(printed[2]) == 1
    assert "27.3" in (tmp_path / "model-en-de" / "README.md").read_text()
