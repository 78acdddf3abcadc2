"""Lines of text as ``wc -l`` and sacreBLEU count them: a line ends at ``\\n`` only."""

import codecs
import sys
from pathlib import Path
from typing import List, Union

STDIN = "-"


def split_lines(text: str) -> List[str]:
    """The lines of a text.

    ``str.splitlines`` and Python's text files also split at U+2028, U+0085, form feeds and single carriage returns,
    which here are ordinary characters. A carriage return before ``\\n`` is removed (files from Windows), and so is a
    byte order mark at the start.
    """
    lines = text[text.startswith("\ufeff") :].split("\n")
    if not lines[-1]:
        lines.pop()  # no line follows the last line end
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def read_lines(path: Union[Path, str]) -> List[str]:
    """The lines of a UTF-8 file, or of standard input for ``-``.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    if str(path) == STDIN:
        name, data = "standard input", sys.stdin.buffer.read()
    elif Path(path).is_dir() or not Path(path).exists():  # else it may be a pipe: /dev/stdin, <(zcat x.gz)
        raise ValueError(f"no file {path}")
    else:
        name, data = str(path), Path(path).read_bytes()
    try:
        return split_lines(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        coding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "not UTF-8"
        raise ValueError(
            f"{name} is {coding} (byte {error.start}): convert it first, for example with iconv"
        ) from error
