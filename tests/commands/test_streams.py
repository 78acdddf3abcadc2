"""What commands write and read beside their work: nothing comes before it, and only \\n ends a line."""

import logging
import subprocess
import sys

import pytest
from conftest import ROOT

from nar_plugins import compat
from nar_plugins.checkpoint_io.convert_mask_predict import read_symbols


def run(*arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, **kwargs)


def test_no_command_begins_with_advice_on_another_package():
    done = run("-c", "import logging; logging.basicConfig(level=0); import nar_plugins.cli.user_dir as u; u.main([])")
    assert done.stdout.decode().strip() == str(ROOT / "nar_plugins"), done.stderr.decode()
    assert b"tensorboardX" not in done.stderr


def test_only_that_line_is_left_out(caplog):
    compat.leave_out_advice_on_speech()  # again, without harm
    logger = logging.getLogger("fairseq.tasks.text_to_speech")
    with caplog.at_level(logging.INFO):
        logger.info("Please install tensorboardX: pip install tensorboardX")
        logger.info("another line")
    assert [record.message for record in caplog.records] == ["another line"]


def test_a_symbol_of_the_release_may_be_what_python_calls_the_end_of_a_line(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_bytes("a 3\nb\u2028c 2\r\n\u0085 1\n".encode())
    assert read_symbols(path) == [("<mask>", "0"), ("a", "3"), ("b\u2028c", "2"), ("\u0085", "1")]
    path.write_text("a 3\nb 2\na 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="dict.txt, line 3: 'a' is in line 1 already"):
        read_symbols(path)
    path.write_bytes(b"gr\xfcn 3\n")
    with pytest.raises(ValueError, match="dict.txt is not UTF-8"):
        read_symbols(path)
